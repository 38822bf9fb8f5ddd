"""Responses of several methods side by side, with the trace of how each came about."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ivg.evaluation.measures.decoded import Decoded, read_decoded
from ivg.evaluation.report.figures import LABELS
from ivg.evaluation.traces import Trace, is_refused, read_trace_lines
from ivg.models.prompts import prompt_text

TRACE_SUFFIX = ".trace.jsonl"
NOT_DECODED = ("judge_answers.jsonl", "instructions.jsonl")  # which an AlpacaEval run keeps in its folder


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One method's response to a prompt.

    Attributes:
        method: who answered.
        text: the response.
        value: its chunk score, if chunks were ranked.
        num_tokens: its length, if stated.
        trace: what `ivg-decode --trace` recorded of it, if anything.
    """

    method: str
    text: str
    value: float | None
    num_tokens: int | None
    trace: Trace | None

    @property
    def tokens(self) -> list[dict[str, Any]]:
        """Tokens with their log-ratio and a strength in [-1, 1] for colouring; empty without a pair."""
        ratios = [] if self.trace is None else self.trace.get("token_logratios", [])
        if self.trace is None or not any(ratios):
            return []
        scale = max(abs(ratio) for ratio in ratios)
        names = self.trace.get("tokens") or [""] * len(ratios)
        return [
            {"text": name, "ratio": ratio, "strength": ratio / scale}
            for name, ratio in zip(names, ratios, strict=True)
        ]

    @property
    def largest_ratio(self) -> float:
        """The largest log-ratio of a token, whichever its sign, in nats; 0 without a pair."""
        return max((abs(token["ratio"]) for token in self.tokens), default=0.0)

    @property
    def boundaries(self) -> list[Choice]:
        """What was kept and what was dropped at each chunk boundary; empty without chunk guidance."""
        if self.trace is None:
            return []
        chunks = [chunk["candidates"] for chunk in self.trace["chunks"]]
        return [_sort_candidates(candidates) for candidates in chunks if len(candidates) > 1]


class Choice(NamedTuple):
    """The candidates of a chunk boundary: those kept, in their order, and those dropped, best first."""

    kept: list[dict[str, Any]]
    dropped: list[dict[str, Any]]


def _sort_candidates(candidates: Sequence[dict[str, Any]]) -> Choice:
    kept = [candidate for candidate in candidates if candidate["kept"] is not None]
    dropped = [candidate for candidate in candidates if candidate["kept"] is None]
    return Choice(
        sorted(kept, key=lambda candidate: int(candidate["kept"])),
        sorted(dropped, key=lambda candidate: -float(candidate["value"])),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and its answers."""

    prompt: str
    answers: list[Answer]

    @property
    def traced(self) -> list[Answer]:
        """The answers of which it can be shown how they came about."""
        return [answer for answer in self.answers if answer.boundaries or answer.tokens]


def read_samples(folder: Path, num_samples: int) -> list[Sample]:
    """Collect the first prompts that all decoded files of a folder answer.

    Args:
        folder: holds `<method>.jsonl`, and `<method>.trace.jsonl` where a trace was kept.
        num_samples: prompts to show.

    Raises:
        UserError: a file that cannot be read.
    """
    known = list(LABELS)
    paths = [p for p in sorted(folder.glob("*.jsonl")) if not p.name.endswith((TRACE_SUFFIX, *NOT_DECODED))]
    paths.sort(key=lambda p: known.index(p.stem) if p.stem in known else len(known))
    files = [read_decoded(path.stem, path) for path in paths]
    if not files:
        return []
    traces = {file.name: read_trace(folder / f"{file.name}{TRACE_SUFFIX}") for file in files}
    shared = [name for name in dict.fromkeys(files[0].ids) if all(name in file.ids for file in files)]
    return [_gather(files, traces, name) for name in shared[:num_samples]]


def _gather(files: Sequence[Decoded], traces: dict[str, dict[str, Trace]], name: str) -> Sample:
    answers = []
    for file in files:
        row = file.rows[file.ids.index(name)]
        answers.append(
            Answer(
                file.name,
                row["response"],
                row.get("value"),
                row.get("num_tokens"),
                traces[file.name].get(name),
            )
        )
    first = files[0].rows[files[0].ids.index(name)]
    return Sample(prompt_text(first) or first["messages"][-1]["content"], answers)


def read_trace(path: Path) -> dict[str, Trace]:
    """Read a trace file, by prompt id; the first sample of each. Empty where there is no such file.

    Raises:
        UserError: a line that is not a trace row.
    """
    if not path.exists():
        return {}
    traces: dict[str, Trace] = {}
    for _, row in read_trace_lines(path):
        if not is_refused(row):
            traces.setdefault(str(row["id"]), row)
    return traces
