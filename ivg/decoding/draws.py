"""The one source of randomness: uniforms that depend on nothing but (seed, prompt, row, position)."""

from __future__ import annotations

import hashlib

import numpy as np


class Draws:
    """The uniforms of one prompt, handed out a chunk of positions at a time.

    Each row has its own counter-based stream, so what a row gets at a position does not depend on batch size,
    chunk length, other prompts, or how many rows the prompt owns.
    """

    def __init__(self, seed: int, prompt_id: str, num_rows: int, *, first_row: int = 0) -> None:
        digest = hashlib.sha256(f"{seed}\x1f{prompt_id}".encode()).digest()
        key = np.frombuffer(digest[:16], dtype=np.uint64)
        self._rows = [
            np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, first_row + row]))
            for row in range(num_rows)
        ]

    def next(self, length: int) -> np.ndarray:
        """Return the uniforms of the next positions: (rows, length), float64 in [0, 1)."""
        return np.stack([row.random(length) for row in self._rows])


def request_seed(seed: int, prompt_id: str, row: int, position: int) -> int:
    """Return the seed of one request, for engines that draw by themselves.

    Args:
        seed: of the run.
        prompt_id: identity of the prompt.
        row: within the prompt.
        position: length of the response where the request begins.

    Returns:
        A number of 63 bits.
    """
    digest = hashlib.sha256(f"{seed}\x1f{prompt_id}\x1f{row}\x1f{position}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
