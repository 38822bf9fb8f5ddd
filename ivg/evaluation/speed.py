"""What a speed comparison shows about the claim that chunk guidance costs less than token guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ivg.evaluation.figures import label

Run = Mapping[str, Any]


def findings(runs: Sequence[Run]) -> list[str]:
    """State, length by length, what chunk guidance costs beside token guidance.

    One sequence of token guidance and a beam of W·K sequences do different amounts of sampling, so the claim
    is checked twice: per prompt, and per token that the base was fed.

    Args:
        runs: entries of `speed.json`.

    Returns:
        One sentence per comparison; empty if the grid lacks either kind.
    """
    lines = []
    for length in dict.fromkeys(run["max_new_tokens"] for run in runs):
        own = [run for run in runs if run["max_new_tokens"] == length]
        token = next((run for run in own if _is(run, token=True, chunk=False)), None)
        for chunk in (run for run in own if token and _is(run, token=False, chunk=True)):
            assert token is not None
            lines.append(_compare(length, chunk, token))
    return lines


def _is(run: Run, *, token: bool, chunk: bool) -> bool:
    return bool((run["token_guidance"] != "none") == token and (run["chunk_guidance"] != "none") == chunk)


def _compare(length: int, chunk: Run, token: Run) -> str:
    per_prompt = chunk["seconds_per_prompt"] / token["seconds_per_prompt"]
    per_token = per_prompt * token["base_tokens_fed"] / chunk["base_tokens_fed"]
    fed = chunk["base_tokens_fed"] / token["base_tokens_fed"]
    verdict = "costs less" if per_prompt < 1 else "costs more"
    each = "less" if per_token < 1 else "more"
    guides = [run["guide_tokens_fed"] / run["base_tokens_fed"] for run in (chunk, token)]
    names = [f"{label(run['method'])} ({run['setting']})" for run in (chunk, token)]
    return (
        f"Up to {length} tokens, per prompt: {names[0]} {verdict} than {names[1]}: {per_prompt:.2f} times "
        f"the seconds, {fed:.1f} times the tokens fed to the base. Per token fed to the base it costs "
        f"{each} ({per_token:.2f} times), with {guides[0]:.1f} guide tokens to each against {guides[1]:.1f}."
    )
