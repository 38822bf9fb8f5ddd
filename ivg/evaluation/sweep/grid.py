"""Grids of guidance settings: the runs of a sweep or a speed comparison, and the YAML that lists them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from ivg.config import DecodeConfig, Guidance, SearchConfig, check_guidance
from ivg.config.yaml_file import build, config_from_dict, read_yaml
from ivg.errors import UserError
from ivg.evaluation.output_folder import check_name
from ivg.rewards import RewardConfig

_OWN_KEYS = ("grid", "reward", "also", "output", "lengths", "repeats")
_NEEDED = {
    "grid": (list, "a list of entries"),
    "reward": (dict, "keys, such as function"),
    "output": (str, "a folder"),
}
# Beside these results lie the files of the runs.
_RESULTS = ("alpaca", "gold_reward", "report", "speed", "sweep")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One setting.

    Attributes:
        method: what its line in a figure is called.
        token_guidance: what is added to the base's next-token log-probabilities.
        chunk_guidance: what ranks the hypotheses at a chunk boundary.
        beta: weight of token guidance; unset without it.
        num_beams: W, beams kept at a boundary.
        num_successors: K, continuations sampled per beam.
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


BASE = Run(method="base")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """What a sweep or a speed comparison runs.

    Attributes:
        decode: models, sampling and input, as for `ivg-decode`.
        runs: the plain base first.
        reward: the gold reward.
        also: dotted names of reward functions that are reported beside it, by the name that tables show.
        output: folder for responses and results.
        lengths: response lengths (max_new_tokens) that a speed comparison runs through.
        repeats: interleaved runs of a speed comparison, of which the median counts.
    """

    decode: DecodeConfig
    runs: tuple[Run, ...]
    reward: RewardConfig
    also: Mapping[str, str]
    output: Path
    lengths: tuple[int, ...]
    repeats: int


def read_grid(path: str, overrides: Sequence[str] = ()) -> GridConfig:
    """Read a grid's YAML: the keys of `ivg-decode` without `search`, and grid, reward, output.

    Raises:
        UserError: an unknown or missing key, a value of the wrong type or out of range, or guidance without
            its models.
    """
    data = read_yaml(path, overrides)
    own = {key: data.pop(key) for key in _OWN_KEYS if key in data}
    for key, (kind, wanted) in _NEEDED.items():
        if not own.get(key):
            raise UserError(f"{path}: {key} is missing; give it")
        if not isinstance(own[key], kind):
            raise UserError(f"{path}: {key} is {own[key]!r:.60}; give {wanted}")
    if "search" in data:
        raise UserError(f"{path}: search belongs to the grid's entries; move its keys there")
    decode = config_from_dict(data)
    if decode.engine != "lockstep":
        raise UserError(
            f"{path}: engine is {decode.engine}, but a grid counts what lockstep feeds its models; "
            "leave it out"
        )
    runs = (BASE, *expand(own["grid"], path))
    _check_names([run.name for run in runs], path)
    for run in runs:
        search = run.search(decode.sampling.max_new_tokens)
        check_guidance(search, decode.sampling, decode.pairs, decode.values)
    return GridConfig(
        decode=decode,
        runs=runs,
        reward=build(RewardConfig, own["reward"], f"{path}: reward"),
        also=_check_also(own.get("also", {}), path),
        output=Path(own["output"]),
        lengths=_check_lengths(own.get("lengths", [decode.sampling.max_new_tokens]), path),
        repeats=_check_count(own.get("repeats", 3), f"{path}: repeats"),
    )


def _check_also(given: object, path: str) -> dict[str, str]:
    if not isinstance(given, dict) or not all(
        isinstance(part, str) for pair in given.items() for part in pair
    ):
        raise UserError(f"{path}: also is {given!r:.60}; give names with a function's dotted name each")
    return given


def _check_names(names: Sequence[str], path: str) -> None:
    """Refuse runs whose files would be elsewhere, another run's, or a report's."""
    for name in names:
        check_name(name, f"{path}: method", reserved=_RESULTS)
        if names.count(name) > 1:
            raise UserError(f"{path}: the grid holds {name} twice; the plain base is always included")


def _check_lengths(given: object, path: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        raise UserError(f"{path}: lengths is {given!r:.60}; give a list of integers >= 1, such as [18, 36]")
    return tuple(_check_count(length, f"{path}: one of lengths") for length in given)


def _check_count(given: object, where: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UserError(f"{where} is {given!r:.60}; give an integer >= 1")
    return given


def expand(entries: Sequence[object], where: str) -> list[Run]:
    """Turn a grid's entries into runs: every combination of the values that an entry lists.

    Raises:
        UserError: an entry that is no mapping, or one of its values is out of range.
    """
    runs = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise UserError(f"{where}: grid holds {entry!r:.60}; give each entry keys, such as method: base")
        lists = [value if isinstance(value, list) else [value] for value in entry.values()]
        for values in itertools.product(*lists):
            runs.append(build(Run, dict(zip(entry, values, strict=True)), f"{where}: grid"))
    return runs
