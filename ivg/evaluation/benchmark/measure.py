"""Run one rung of the speed ladder in this process."""

from __future__ import annotations

import dataclasses
import math
import resource
import time
from typing import Any

import torch

from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.loop import Loop
from ivg.evaluation.benchmark import naive
from ivg.evaluation.benchmark.floor import Floor, bytes_per_prompt, memory_rate, peak_rate
from ivg.evaluation.benchmark.timing import median_seconds
from ivg.evaluation.benchmark.workloads import BenchmarkModels, Workload, build_models, build_rows
from ivg.evaluation.sweep.peak_memory import resident_peak_mib

RUNGS = ("naive", "kept caches", "batched prompts", "continuous batching")
FEW_PROMPTS = 4  # the rungs that take one prompt at a time cost the same for every prompt; a few tell


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What a rung did.

    Attributes:
        seconds: wall time.
        num_prompts: prompts decoded.
        guide_tokens: tokens fed to pair and value model.
        flops: matrix-product operations of all models, or None where they were not counted.
        bytes_read: at least, of weights, keys and values; or None.
    """

    seconds: float
    num_prompts: int
    guide_tokens: int
    flops: float | None = None
    bytes_read: float | None = None


def measure(
    workload: Workload,
    rung: str,
    *,
    dtype: torch.dtype,
    device: str,
    num_prompts: int | None,
    max_batch_rows: int,
) -> dict[str, Any]:
    """Run one rung and return its figures per prompt, with the machine's matrix-product rate around it."""
    models = build_models(workload, dtype, device)
    rate_before = matmul_rate(dtype, device)
    if rung == "naive":
        work = _run_naive(models, workload, num_prompts)
    else:
        work = _run_engine(models, workload, rung, num_prompts, max_batch_rows)
    sampled = workload.new_tokens * workload.search.rows_per_prompt
    figures = {
        "num_prompts": work.num_prompts,
        "seconds_per_prompt": work.seconds / work.num_prompts,
        "returned_tokens_per_second": work.num_prompts * workload.new_tokens / work.seconds,
        "sampled_tokens_per_second": work.num_prompts * sampled / work.seconds,
        "guide_tokens_per_prompt": work.guide_tokens / work.num_prompts,
        "peak_memory_mib": _peak_memory(device),
        "matmul_gflops": [rate_before, matmul_rate(dtype, device)],
    }
    if work.flops is not None and work.bytes_read is not None:
        rates = memory_rate(device), peak_rate(dtype, device)
        floor = Floor(work.bytes_read / rates[0], work.flops / rates[1])
        figures |= {
            "gflop_per_prompt": work.flops / work.num_prompts / 1e9,
            "gbyte_per_prompt": work.bytes_read / work.num_prompts / 1e9,
            "memory_gbyte_per_second": rates[0] / 1e9,
            "peak_gflops": rates[1] / 1e9,
            "floor_memory_seconds": floor.memory_seconds / work.num_prompts,
            "floor_arithmetic_seconds": floor.arithmetic_seconds / work.num_prompts,
            "share_of_floor": floor.seconds / work.seconds,
        }
    return figures


def _run_naive(models: BenchmarkModels, workload: Workload, num_prompts: int | None) -> Work:
    prompts = workload.prompts(num_prompts)[:FEW_PROMPTS]
    short = dataclasses.replace(workload, new_tokens=workload.search.chunk_length)
    naive.decode(models, short, prompts[0])  # first calls pay for memory and kernels
    start = time.perf_counter()
    guide_tokens = sum(naive.decode(models, workload, prompt)[0] for prompt in prompts)
    return Work(time.perf_counter() - start, len(prompts), guide_tokens)


def _run_engine(
    models: BenchmarkModels, workload: Workload, rung: str, num_prompts: int | None, max_batch_rows: int
) -> Work:
    rows = build_rows(models, workload)
    tasks, per_prompt = workload.tasks(num_prompts), workload.search.rows_per_prompt
    if rung == "kept caches":
        tasks, max_batch_rows = tasks[:FEW_PROMPTS], per_prompt
    together = max_batch_rows // per_prompt if rung == "batched prompts" else len(tasks)
    short = dataclasses.replace(tasks[0], max_tokens=workload.search.chunk_length)
    stop_checker = StopChecker([], [], lambda ids: "")
    loop = Loop(rows, workload.search, workload.sampling, stop_checker, max_rows=max_batch_rows)
    list(loop.run([short]))
    before = [runner.tokens_fed for runner in rows.runners]
    start = time.perf_counter()
    for first in range(0, len(tasks), together):
        list(loop.run(tasks[first : first + together]))
    seconds = time.perf_counter() - start
    fed = [runner.tokens_fed - already for runner, already in zip(rows.runners, before, strict=True)]
    costs = [2.0 * runner.num_matrix_weights for runner in rows.runners]
    flops = sum(tokens * cost for tokens, cost in zip(fed, costs, strict=True))
    itemsize = models.base.dtype.itemsize
    # Prompts in a step, on average: batches are full but the last.
    at_once = min(together, max_batch_rows // per_prompt)
    in_step = len(tasks) / math.ceil(len(tasks) / at_once)
    bytes_read = len(tasks) * bytes_per_prompt(workload, rows, in_step, itemsize)
    return Work(seconds, len(tasks), sum(fed[1:]), flops, bytes_read)


def _peak_memory(device: str) -> float:
    """Return MiB: of the GPU where there is one, else resident memory of this process."""
    if device == "cpu":
        peak = resident_peak_mib()
        # On macOS this counts in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 if peak is None else peak
    return torch.cuda.max_memory_allocated() / 2**20


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """Return GFLOP/s on matrices like the workload's: 256 x 512 by 512 x 2048."""
    left = torch.randn(256, 512, device=device, dtype=dtype)
    right = torch.randn(2048, 512, device=device, dtype=dtype)

    def ten() -> None:
        for _ in range(10):
            torch.nn.functional.linear(left, right)

    return 10 * 2 * 256 * 512 * 2048 / median_seconds(ten, device, times=30) / 1e9
