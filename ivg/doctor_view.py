"""The doctor's report as tables for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ivg.doctor import Diagnosis, ModelReport

_MAX_EXAMPLE = 300  # characters


def render(diagnosis: Diagnosis) -> RenderableType:
    """Return what a console prints: models, guidance, memory, problems."""
    parts: list[RenderableType] = [_models(diagnosis.models), _guidance(diagnosis)]
    total = diagnosis.weight_bytes + diagnosis.cache_bytes
    parts.append(
        Text(
            f"memory, estimated: weights {size(diagnosis.weight_bytes)} + keys and values at most "
            f"{size(diagnosis.cache_bytes)} = {size(total)}, activations not counted"
        )
    )
    parts += [_example(model) for model in diagnosis.models]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in diagnosis.warnings]
    parts += [Text(f"problem: {problem}", style="red") for problem in diagnosis.problems]
    if not diagnosis.problems:
        parts.append(Text(f"ready to decode {diagnosis.num_prompts:,} prompts", style="green"))
    return Group(*parts)


def size(num_bytes: int) -> str:
    """Write a number of bytes with its unit."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def _models(models: tuple[ModelReport, ...]) -> Table:
    table = Table("model", "kind", "parameters", "weights", "vocabulary", "EOS", "longest prompt / context")
    for model in models:
        table.add_row(
            escape(model.name),
            f"{model.kind} ({escape(model.architecture)})",
            f"{model.needs.num_parameters:,}",
            f"{size(model.needs.weight_bytes)}{' (shared)' if model.shares_weights else ''}",
            _vocabulary(model),
            escape(
                ", ".join(f"{i} {t}" for i, t in zip(model.eos_ids, model.eos_tokens, strict=True)) or "none"
            ),
            f"{model.longest_prompt:,} / {model.max_length or 'no limit'}",
        )
    return table


def _vocabulary(model: ModelReport) -> str:
    if model.match is None:
        return "the base's own"
    verdict = "agrees" if model.match.agrees else "differs"
    return f"{verdict}: {model.match.summary()}"


def _guidance(diagnosis: Diagnosis) -> Table:
    table = Table("guidance", "possible", "how, or why not")
    for entry in diagnosis.possibilities:
        chosen = " (asked for)" if entry.is_asked_for else ""
        table.add_row(
            f"{entry.level} {entry.kind}{chosen}", "yes" if entry.is_possible else "no", escape(entry.remark)
        )
    return table


def _example(model: ModelReport) -> Text:
    text = model.example if len(model.example) <= _MAX_EXAMPLE else model.example[:_MAX_EXAMPLE] + " ..."
    return Text(f"{model.name} reads, by its template {model.template!r}: {text!r}")
