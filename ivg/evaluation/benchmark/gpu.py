"""The speed ladder on a GPU with what fits its memory, guided decoding beside the base alone."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterator
from typing import Any

import torch

from ivg.config import SearchConfig
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.batch import LockstepBatch
from ivg.engines.lockstep.loop import Loop
from ivg.evaluation.benchmark.floor import memory_rate
from ivg.evaluation.benchmark.measure import measure
from ivg.evaluation.benchmark.workloads import Workload, build_model, runner_over

ONE_PROMPT_RUNGS = ("naive", "kept caches")  # they take one prompt at a time
FULL_RUNG = "continuous batching"
BASE_ALONE = "base alone, as many rows"
_SHARE = 0.85  # of the memory beside the weights that caches may take
_SPARE = 1.4  # buffers grow by a third, and one layer's spare is kept


def rows_that_fit(workload: Workload, itemsize: int, total_memory: int) -> int:
    """Return how many rows fit the card beside the weights: whole prompts, at most the workload's.

    Args:
        workload: its shapes and lengths.
        itemsize: bytes of a number.
        total_memory: of the card, in bytes.
    """
    shapes = (workload.base, workload.guide, workload.guide, workload.guide)
    columns = workload.prompt_lengths[1] + workload.new_tokens
    weights = sum(shape.num_weights(workload.vocab_size) for shape in shapes)
    per_row = sum(2 * shape.layers * shape.hidden for shape in shapes) * columns * _SPARE
    rows = int((_SHARE * (total_memory - itemsize * weights)) / (itemsize * per_row))
    per_prompt = workload.search.rows_per_prompt
    return min(rows // per_prompt, workload.num_prompts) * per_prompt


def measure_on_gpu(
    workload: Workload, *, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the rungs one after the other, and the base alone with as many rows; yield each as it is done.

    Yields:
        A rung's name and `measure`'s figures with `rows` and `milliseconds_per_step`. A rung whose rows do
        not fit is yielded with `not_measured`, the reason.
    """
    total = torch.cuda.get_device_properties(device).total_memory if device != "cpu" else 2**30
    most_rows = rows_that_fit(workload, dtype.itemsize, total)
    per_prompt = workload.search.rows_per_prompt
    for rung in (*ONE_PROMPT_RUNGS, FULL_RUNG):
        rows = per_prompt if rung in ONE_PROMPT_RUNGS else most_rows
        if rows < per_prompt:
            yield rung, {"not_measured": f"one prompt's {per_prompt} rows do not fit the card"}
            continue
        _release(device)
        figures = measure(
            workload, rung, dtype=dtype, device=device, num_prompts=rows // per_prompt, max_batch_rows=rows
        )
        seconds = figures["seconds_per_prompt"] * figures["num_prompts"]
        steps = workload.new_tokens * (figures["num_prompts"] if rung in ONE_PROMPT_RUNGS else 1)
        yield rung, figures | {"rows": rows, "milliseconds_per_step": 1e3 * seconds / steps}
    if most_rows:
        _release(device)
        yield BASE_ALONE, _base_alone(workload, dtype, device, most_rows)


def _base_alone(workload: Workload, dtype: torch.dtype, device: str, num_rows: int) -> dict[str, Any]:
    """Sample from the base without guides, one row per task."""
    runner = runner_over(build_model(workload, workload.base, dtype, device), "base")
    batch = LockstepBatch(runner, [], workload.sampling)
    search = SearchConfig(chunk_length=workload.search.chunk_length)
    loop = Loop(batch, search, workload.sampling, StopChecker([], [], lambda ids: ""), max_rows=num_rows)
    tasks = workload.tasks(num_rows)
    list(loop.run([dataclasses.replace(task, max_tokens=search.chunk_length) for task in tasks]))
    _synchronize(device)
    start = time.perf_counter()
    list(loop.run(tasks))
    _synchronize(device)
    seconds = time.perf_counter() - start
    weights = runner.num_matrix_weights * dtype.itemsize
    columns = sum(workload.prompt_lengths) / 2 + workload.new_tokens / 2
    states = num_rows * columns * 2 * workload.base.layers * workload.base.hidden * dtype.itemsize
    floor = workload.new_tokens * (weights + states) / memory_rate(device)
    return {
        "rows": num_rows,
        "milliseconds_per_step": 1e3 * seconds / workload.new_tokens,
        "sampled_tokens_per_second": num_rows * workload.new_tokens / seconds,
        "share_of_floor": floor / seconds,
    }


def _release(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
