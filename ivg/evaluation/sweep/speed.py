"""What a speed comparison shows about the claim that chunk guidance costs less than token guidance."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ivg.evaluation.report.figures import label
from ivg.evaluation.report.tables import Table

Entry = Mapping[str, Any]  # of speed.json


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """A run with chunk guidance beside the run with token guidance of the same length.

    Attributes:
        chunk: the run with chunk guidance.
        token: the run with token guidance.
    """

    chunk: Entry
    token: Entry

    @property
    def seconds(self) -> float:
        """Seconds per prompt, as a multiple."""
        return float(self.chunk["seconds_per_prompt"] / self.token["seconds_per_prompt"])

    @property
    def tokens_fed(self) -> float:
        """Tokens fed to the base, as a multiple."""
        return float(self.chunk["base_tokens_fed"] / self.token["base_tokens_fed"])

    @property
    def seconds_per_token(self) -> float:
        """Seconds per token fed to the base, as a multiple."""
        return self.seconds / self.tokens_fed

    @property
    def guide_tokens(self) -> tuple[float, float]:
        """Tokens fed to guides for each token fed to the base, with chunk and with token guidance."""
        chunk, token = (run["guide_tokens_fed"] / run["base_tokens_fed"] for run in (self.chunk, self.token))
        return float(chunk), float(token)


def compare_costs(runs: Sequence[Entry]) -> list[Comparison]:
    """Set every run with chunk guidance alone beside token guidance of the same length.

    Args:
        runs: entries of `speed.json`.

    Returns:
        Length by length; empty if the grid lacks either kind.
    """
    found = []
    for length in dict.fromkeys(run["max_new_tokens"] for run in runs):
        own = [run for run in runs if run["max_new_tokens"] == length]
        token = next((run for run in own if _is(run, token=True, chunk=False)), None)
        if token is not None:
            found += [Comparison(run, token) for run in own if _is(run, token=False, chunk=True)]
    return found


def _is(run: Entry, *, token: bool, chunk: bool) -> bool:
    return bool((run["token_guidance"] != "none") == token and (run["chunk_guidance"] != "none") == chunk)


def findings(runs: Sequence[Entry]) -> list[str]:
    """State what each way of chunk guidance costs beside token guidance, over all lengths.

    One sequence of token guidance and a beam of W·K sequences do different amounts of sampling, so the claim
    is checked twice: per prompt, and per token that the base was fed.

    Args:
        runs: entries of `speed.json`.

    Returns:
        One sentence per way of chunk guidance.
    """
    by_name: defaultdict[str, list[Comparison]] = defaultdict(list)
    for pair in compare_costs(runs):
        by_name[_name(pair.chunk)].append(pair)
    return [_finding(name, pairs) for name, pairs in by_name.items()]


def _name(run: Entry) -> str:
    return label(run["method"]) + (f" ({run['setting']})" if run["setting"] else "")


def _finding(name: str, pairs: Sequence[Comparison]) -> str:
    per_prompt, per_token = [p.seconds for p in pairs], [p.seconds_per_token for p in pairs]
    return (
        f"Per prompt, {name} costs {_verdict(per_prompt)} than {_name(pairs[0].token)}: {_span(per_prompt)} "
        f"times the seconds, at {_span([p.tokens_fed for p in pairs])} times the tokens fed to the base. "
        f"Per token fed to the base it costs {_verdict(per_token)}: {_span(per_token)} times the seconds."
    )


def _verdict(ratios: Sequence[float]) -> str:
    if max(ratios) < 1:
        return "less"
    return "more" if min(ratios) > 1 else "less or more, by length,"


def _span(ratios: Sequence[float]) -> str:
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return low if low == high else f"{low} to {high}"


def costs_table(runs: Sequence[Entry]) -> Table | None:
    """Tabulate `compare_costs`; None if there is nothing to compare."""
    header = ["method", "up to (tokens)", "seconds a prompt"]
    header += ["base tokens fed", "seconds per base token fed", "guide tokens per base token", "n"]
    rows = [
        [
            _name(pair.chunk),
            str(pair.chunk["max_new_tokens"]),
            *(f"{ratio:.2f}×" for ratio in (pair.seconds, pair.tokens_fed, pair.seconds_per_token)),
            "{:.1f} against {:.1f}".format(*pair.guide_tokens),
            str(pair.chunk["num_prompts"]),
        ]
        for pair in compare_costs(runs)
    ]
    return (
        Table("Cost of chunk guidance as a multiple of token guidance", header, rows, group_by=1)
        if rows
        else None
    )
