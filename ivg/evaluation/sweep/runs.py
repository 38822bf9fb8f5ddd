"""One run of a grid on models that are loaded already, and what it cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivg.config import DecodeConfig, ModelConfig, SamplingConfig
from ivg.decoding.engine import in_order
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.errors import UserError
from ivg.evaluation.sweep.grid import GridConfig, Run
from ivg.models.loading import Models, load_models
from ivg.models.prompts import Record
from ivg.run.api import response, result_fields
from ivg.run.input_files import read_input, refuse_bad_records, source_name
from ivg.run.tasks import make_tasks


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    Attributes:
        rows: output rows with `token_ids`.
        seconds: decoding, without loading.
        tokens_fed: by model, prompts included.
        runner_tokens: the same in the models' order, the base first.
        flops: 2 x weights of matrix products x tokens fed, over all models; attention over the cache and the
            sampling are left out, and so are guides that read text (another vocabulary).
    """

    rows: list[dict[str, Any]]
    seconds: float
    tokens_fed: dict[str, int]
    runner_tokens: list[int]
    flops: float


def decode_run(
    models: Models, run: Run, sampling: SamplingConfig, rows: Sequence[Record], *, max_batch_rows: int
) -> RunResult:
    """Decode prompts with a run's settings on models that are loaded already."""
    search = run.search(sampling.max_new_tokens)
    engine = LockstepEngine(
        models if run.beta is None else with_beta(models, run.beta),
        search,
        sampling,
        max_batch_rows=max(max_batch_rows, search.rows_per_prompt),
    )
    tasks, bad = make_tasks(rows, engine.infos, sampling)
    if bad:
        raise UserError(f"prompt {bad[0].index + 1} of {len(rows)}: {bad[0].reason}")
    start = time.perf_counter()
    finished = list(in_order(tasks, engine.run(tasks)))
    seconds = time.perf_counter() - start
    out = []
    for done in finished:
        fields = dict(rows[done.task.index // sampling.num_samples])
        found = response(done, fields, engine.stop_checker, search)
        out.append({**fields, "id": found.id, **result_fields(found), "token_ids": list(found.token_ids)})
    by_runner = [runner.tokens_fed for runner in engine.lockstep.runners]
    return RunResult(out, seconds, engine.tokens_fed, by_runner, engine.flops)


def load_grid(grid: GridConfig) -> Models:
    """Load a grid's models."""
    return load_models(grid.decode.base, pairs=grid.decode.pairs, values=grid.decode.values)


def weight_files(decode: DecodeConfig) -> dict[str, list[tuple[str, int, int]]]:
    """Return name, size and time of change (ns) of the weight files in every local model folder.

    They tell a model that was trained again at the same path from the one that was there before.
    """
    guides = [model for pair in decode.pairs for model in (pair.tuned, pair.untuned)]
    guides += [value.model for value in decode.values if value.model is not None]
    return {model.path: _weight_files(model) for model in (decode.base, *guides)}


def _weight_files(model: ModelConfig) -> list[tuple[str, int, int]]:
    files = sorted(Path(model.path).glob("*"))  # none for a Hub name
    found = [(file.name, file.stat()) for file in files if file.suffix in (".safetensors", ".bin")]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def run_at_length(
    grid: GridConfig, models: Models, run: Run, max_new_tokens: int, rows: Sequence[Record]
) -> RunResult:
    """Decode a run with responses of another length than the grid's."""
    sampling = dataclasses.replace(grid.decode.sampling, max_new_tokens=max_new_tokens)
    return decode_run(models, run, sampling, rows, max_batch_rows=grid.decode.max_batch_rows)


def load_and_run(grid: GridConfig, run: Run, max_new_tokens: int, rows: Sequence[Record]) -> None:
    """Do all that a run needs memory for, in a process that has done nothing else."""
    run_at_length(grid, load_grid(grid), run, max_new_tokens, rows)


def grid_prompts(grid: GridConfig, path: str) -> list[Record]:
    """Read a grid's prompts.

    Args:
        grid: the grid.
        path: its file, for messages.

    Raises:
        UserError: a bad row, or several samples per prompt.
    """
    if grid.decode.sampling.num_samples != 1:
        raise UserError(f"{path}: a grid takes one response per prompt; remove num_samples")
    records = read_input(grid.decode.input, grid.decode.dataset, grid.decode.limit)
    refuse_bad_records(records, source_name(grid.decode.input, grid.decode.dataset))
    return [record.fields for record in records]


def with_beta(models: Models, beta: float) -> Models:
    """Return the same loaded models with another weight of token guidance."""
    pairs = tuple(
        dataclasses.replace(p, config=dataclasses.replace(p.config, beta=beta)) for p in models.infos.pairs
    )
    values = tuple(
        dataclasses.replace(v, config=dataclasses.replace(v.config, beta=beta)) for v in models.infos.values
    )
    return dataclasses.replace(
        models,
        infos=dataclasses.replace(models.infos, pairs=pairs, values=values),
        pairs=tuple(dataclasses.replace(p, info=i) for p, i in zip(models.pairs, pairs, strict=True)),
        values=tuple(dataclasses.replace(v, info=i) for v, i in zip(models.values, values, strict=True)),
    )
