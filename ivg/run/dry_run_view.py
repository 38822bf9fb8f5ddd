"""The doctor's report for the terminal: a block for each model, a table of guidance, memory, the verdict."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ivg.run.dry_run import DryRun, ModelReport

_MAX_EXAMPLE = 300  # characters
_KINDS = {
    "causal": "causal language model",
    "scalar": "value model, scalar head",
    "vocabulary": "value model, vocabulary head",
    "classifier": "reward model that reads text",
}


def render(report: DryRun) -> RenderableType:
    """Return what a console prints; it fits 80 columns."""
    parts: list[RenderableType] = []
    for model in report.models:
        parts += [Text(model.name, style="bold"), _facts(model), Text()]
    parts += [_guidance(report), Text()]
    total = report.weight_bytes + report.cache_bytes
    parts.append(
        Text(
            f"memory: {size(total)} = weights {size(report.weight_bytes)} + keys and values of "
            f"{report.num_rows} rows, at most {size(report.cache_bytes)}; activations come on top"
        )
    )
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    parts += [Text(f"problem: {problem}", style="red") for problem in report.problems]
    if not report.problems:
        parts.append(Text(f"ready to decode {report.num_prompts:,} prompts", style="green"))
    return Group(*parts)


def size(num_bytes: int) -> str:
    """Write a number of bytes with its unit."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def _facts(model: ModelReport) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=12)
    shared = ", shared with another model" if model.shares_weights else ""
    eos = ", ".join(f"{i} {t}" for i, t in zip(model.eos_ids, model.eos_tokens, strict=True))
    limit = "no limit" if model.max_length is None else f"{model.max_length:,} tokens"
    facts = {
        "what": f"{_KINDS[model.kind]} ({model.architecture})",
        "weights": f"{size(model.needs.weight_bytes)}, {model.needs.num_parameters:,} parameters{shared}",
        "vocabulary": _vocabulary(model),
        "EOS": eos or "none",
        "context": f"{limit}; the longest prompt has {model.longest_prompt:,}",
        "template": repr(model.template),
        "reads": _example(model),
    }
    if not model.is_used:
        facts["use"] = "none in this run; it will not be loaded"
    for name, fact in facts.items():
        table.add_row(f"  {name}", escape(fact))
    return table


def _vocabulary(model: ModelReport) -> str:
    if model.match is None:
        return "the base's own"
    verdict = "agrees" if model.match.agrees else "differs"
    return f"{verdict}: {model.match.summary()}"


def _example(model: ModelReport) -> str:
    text = model.example
    return repr(text if len(text) <= _MAX_EXAMPLE else text[:_MAX_EXAMPLE] + " ...")


def _guidance(report: DryRun) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("guidance (*: asked for)", no_wrap=True)
    table.add_column("possible", no_wrap=True)
    table.add_column("how, or why not", overflow="fold")
    for entry in report.possibilities:
        mark = "*" if entry.is_asked_for else " "
        table.add_row(
            f"{mark} {entry.level} {entry.kind}", "yes" if entry.is_possible else "no", escape(entry.remark)
        )
    return table
