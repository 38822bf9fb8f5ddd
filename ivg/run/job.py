"""A run before it starts: everything checked, every prompt encoded, nothing loaded or written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivg.config import DecodeConfig
from ivg.decoding.sequences import Task
from ivg.errors import UserError
from ivg.models.inspection import ModelInfo
from ivg.models.plan import (
    GuidePlan,
    ModelInfos,
    inspect_models,
    plan_functions,
    plan_guides,
    reading_models,
    used_models,
)
from ivg.models.vocab import stop_token_ids
from ivg.rewards import import_function, source_hash
from ivg.run.input_files import InputRecord, read_input, refuse_bad_rows, source_name
from ivg.run.output_files import (
    content_hash,
    fingerprint,
)
from ivg.run.requests import make_tasks


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A run whose settings, prompts and guidance were checked; weights and files were not touched yet.

    Attributes:
        config: what was asked for.
        infos: the models, not loaded.
        plans: who guides, and how.
        rows: the input.
        tasks: per input row, its tasks (none for a bad row).
        bad: per bad row's index, the reason.
    """

    config: DecodeConfig
    infos: ModelInfos
    plans: list[GuidePlan]
    rows: list[InputRecord]
    tasks: list[list[Task]]
    bad: dict[int, str]

    @property
    def blocks(self) -> list[range]:
        """Input rows of each block; a function of input and settings alone."""
        size = self.config.block_size
        return [range(s, min(s + size, len(self.rows))) for s in range(0, len(self.rows), size)]


def output_rows(job: Job, index: int) -> int:
    """Return how many output rows an input row makes: one per sample, one for a bad row."""
    return len(job.tasks[index]) or 1


def trace_paths(job: Job) -> list[Path]:
    """Return the trace file's path, or nothing."""
    return [Path(job.config.trace)] if job.config.trace is not None else []


_NOT_SETTINGS = ("input", "output", "trace")


def prepare(config: DecodeConfig, rows: Sequence[InputRecord] | None = None) -> Job:
    """Check the whole run before any weights are loaded.

    Args:
        config: the run.
        rows: its input, where that was read already.

    Raises:
        UserError: whatever the user can mend, all bad rows at once.
    """
    _check_paths(config)
    infos = inspect_models(config.base, config.pairs, config.values)
    plans = plan_guides(infos, config.search)
    for function in plan_functions(infos, config.search):
        import_function(function.name, "value function")
    stop_token_ids(infos.base.tokenizer, config.sampling.stop)
    rows = read_input(config.input, config.dataset, config.limit) if rows is None else list(rows)
    runners = reading_models(infos.base, plans)
    usable = [(i, source) for i, source in enumerate(rows) if source.error is None]
    tasks, too_long = make_tasks(
        [source.row for _, source in usable], runners, config.sampling, on_overflow=config.on_overflow
    )
    places = [i for i, _ in usable]
    for entry in too_long:
        i = places[entry.index]
        rows[i] = rows[i]._replace(error=f"{rows[i].where}: {entry.reason}")
    if not config.skip_bad_rows:
        refuse_bad_rows(rows, source_name(config.input, config.dataset))
    num_samples = config.sampling.num_samples
    per_row: list[list[Task]] = [[] for _ in rows]
    for task in tasks:
        i = places[task.index // num_samples]
        per_row[i].append(dataclasses.replace(task, index=i * num_samples + task.sample))
    bad = {i: source.error for i, source in enumerate(rows) if source.error is not None}
    return Job(config, used_models(infos, plans), plans, rows, per_row, bad)


def _check_paths(config: DecodeConfig) -> None:
    """Refuse files that would be written over each other."""
    if config.output is None:
        raise UserError("no output: give a file, or '-' for standard output")
    if config.trace is not None and "-" in (config.output, config.trace):
        raise UserError("trace and output are two files; give both a path instead of '-'")
    named = [("input", config.input), ("output", config.output), ("trace", config.trace)]
    files = [(name, path, os.path.realpath(path)) for name, path in named if path not in (None, "-")]
    for i, (name, path, real) in enumerate(files):
        for other, _, other_real in files[:i]:
            if real == other_real:
                raise UserError(f"{other} and {name} are the same file, {path}; give each its own")


def settings(job: Job, *, several_processes: bool) -> dict[str, Any]:
    """Return everything that decides the output's bytes, for the manifest."""
    config = dataclasses.asdict(job.config)
    for name in _NOT_SETTINGS:
        config.pop(name)
    models = reading_models(job.infos.base, job.plans)
    return {
        **config,
        "input_hash": content_hash([source.row for source in job.rows]),
        "models": {info.name: _identity(info) for info in models},
        "functions": {
            function.name: source_hash(function.name)
            for function in plan_functions(job.infos, job.config.search)
        },
        "several_processes": several_processes,
    }


def _identity(info: ModelInfo) -> dict[str, Any]:
    folder = Path(info.source.path)
    return {
        "fingerprint": fingerprint(folder) if folder.is_dir() else None,
        "commit": info.config.to_dict().get("_commit_hash"),
        "template": info.template,
        "eos_ids": list(info.eos_ids),
    }
