"""Traces of searches without models: words, values and log-ratios are drawn at random."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ivg.config import SearchConfig
from ivg.decoding.beam_search import BeamSearch
from ivg.decoding.sequences import Hypothesis, Task
from ivg.run.trace import trace_line

TEXT = """\
the film, a light quiet comedy about two neighbours, is warm and funny. Its actors know when to wait; its
music does not.\n\nSlow at first. Then you care: for every small lie of theirs, and for the dog"""
WORDS = TEXT.split(" ")
NUM_WORDS = len(WORDS)


def decode(ids: tuple[int, ...]) -> str:
    return "".join(("" if i == 0 or WORDS[i].startswith("\n") else " ") + WORDS[i] for i in ids)


def search_trace(
    name: str,
    seed: int = 0,
    *,
    num_beams: int = 4,
    num_successors: int = 4,
    chunk_length: int = 5,
    max_tokens: int = 60,
    guides_tokens: bool = True,
    prompt: str = "Say what you thought of the film.",
) -> dict[str, Any]:
    """Return the trace row of a search over random words."""
    draw = random.Random(seed)
    config = SearchConfig(
        token_guidance="implicit" if guides_tokens else "none",
        chunk_guidance="explicit" if num_beams * num_successors > 1 else "none",
        num_beams=num_beams,
        num_successors=num_successors,
        chunk_length=chunk_length,
    )
    task = Task(0, name, {"base": (1,)}, max_tokens, record={"prompt": prompt})
    search = BeamSearch(task, config, seed, keep_trace=True)
    while not search.is_done:
        grown = []
        for extension in search.extensions():
            prefix, number = extension.prefix, extension.max_tokens
            is_over = draw.random() < 0.04
            number = draw.randint(1, number) if is_over else number
            ids = (*prefix.ids, *(draw.randrange(NUM_WORDS) for _ in range(number)))
            ratios = [draw.gauss(0.2, 0.8) if guides_tokens else 0.0 for _ in range(number)]
            reason = "eos" if is_over else "length" if len(ids) == max_tokens else None
            value = prefix.value + draw.gauss(0, 0.6) if num_beams * num_successors > 1 else 0.0
            grown.append(Hypothesis(ids, value, reason, (*prefix.log_ratios, *ratios)))
        search.take(grown)
        search.advance()
    row: dict[str, Any] = trace_line(search.finished(), num_successors, decode)
    return row


def write_trace(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
