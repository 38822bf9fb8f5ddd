"""Grids of guidance settings: what a cell is, and the YAML that lists them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.config import DecodeConfig, Guidance, SearchConfig, check_guidance
from ivg.config_file import build, config_from_dict, read_yaml
from ivg.errors import UserError
from ivg.rewards import RewardConfig

_OWN_KEYS = ("grid", "reward", "output", "lengths", "repeats")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One setting.

    Attributes:
        method: what its line in a figure is called.
        beta: weight of token guidance; unset without it.
        chunk_length: L; unset: the whole response, so that one beam and K successors are best-of-K.
    """

    method: str
    token_guidance: Guidance = "none"
    chunk_guidance: Guidance = "none"
    beta: float | None = None
    num_beams: int = 1
    num_successors: int = 1
    chunk_length: int | None = None

    @property
    def setting(self) -> str:
        """What varies within a method, for people."""
        parts = [] if self.beta is None else [f"β={self.beta:g}"]
        if self.chunk_guidance != "none" and self.chunk_length is None:
            parts.append(f"N={self.num_beams * self.num_successors}")
        elif self.chunk_guidance != "none":
            parts.append(f"W={self.num_beams} K={self.num_successors} L={self.chunk_length}")
        return ", ".join(parts)

    @property
    def name(self) -> str:
        """A file name of its own."""
        beta = "" if self.beta is None else f"-beta{self.beta:g}"
        search = f"-W{self.num_beams}-K{self.num_successors}-L{self.chunk_length or 'all'}"
        return self.method + beta + ("" if self.chunk_guidance == "none" else search)

    def search(self, max_new_tokens: int) -> SearchConfig:
        """Return the engine's settings."""
        return SearchConfig(
            token_guidance=self.token_guidance,
            chunk_guidance=self.chunk_guidance,
            num_beams=self.num_beams,
            num_successors=self.num_successors,
            chunk_length=self.chunk_length or max_new_tokens,
        )


BASE = Cell(method="base")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """What a sweep or a speed comparison runs.

    Attributes:
        decode: models, sampling and input, as for `ivg-decode`.
        cells: the plain base first.
        reward: the gold reward.
        output: folder for responses and results.
        lengths: response lengths (max_new_tokens) that a speed comparison runs through.
        repeats: interleaved runs of a speed comparison, of which the median counts.
    """

    decode: DecodeConfig
    cells: tuple[Cell, ...]
    reward: RewardConfig
    output: Path
    lengths: tuple[int, ...]
    repeats: int


def read_grid(path: str, overrides: Sequence[str] = ()) -> GridConfig:
    """Read a grid's YAML: the keys of `ivg-decode` without `search`, and grid, reward, output.

    Raises:
        UserError: an unknown or missing key, a value out of range, or guidance without its models.
    """
    data = read_yaml(path, overrides)
    own = {key: data.pop(key) for key in _OWN_KEYS if key in data}
    missing = [key for key in ("grid", "reward", "output") if not own.get(key)]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing; give it")
    if "search" in data:
        raise UserError(f"{path}: search belongs to the grid's entries; move its keys there")
    decode = config_from_dict(data)
    cells = (BASE, *expand(own["grid"], path))
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: the grid holds {twice} twice; the plain base is always included")
    for cell in cells:
        search = cell.search(decode.sampling.max_new_tokens)
        check_guidance(search, decode.sampling, decode.pairs, decode.values)
    return GridConfig(
        decode=decode,
        cells=cells,
        reward=build(RewardConfig, own["reward"], f"{path}: reward"),
        output=Path(own["output"]),
        lengths=tuple(own.get("lengths", (decode.sampling.max_new_tokens,))),
        repeats=int(own.get("repeats", 3)),
    )


def expand(entries: Sequence[Mapping[str, Any]], where: str) -> list[Cell]:
    """Turn a grid's entries into cells: every combination of the values that an entry lists."""
    cells = []
    for entry in entries:
        lists = [value if isinstance(value, list) else [value] for value in entry.values()]
        for values in itertools.product(*lists):
            cells.append(build(Cell, dict(zip(entry, values, strict=True)), f"{where}: grid"))
    return cells
