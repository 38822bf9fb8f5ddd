"""What each acceleration of a CPU is worth: the same work without it, in turns with the whole."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import torch

from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.acceleration import Accelerations
from ivg.engines.lockstep.loop import Loop
from ivg.evaluation.benchmark.workloads import Workload, build_models, build_rows

ALL, NONE = "all", "none"


def measure_ablation(
    workload: Workload, *, dtype: torch.dtype, num_prompts: int | None, max_batch_rows: int, runs: int
) -> dict[str, Any]:
    """Decode with all accelerations, with all but one, and with none, on the CPU, in turns.

    Returns:
        By variant (`all`, `without NAME`, `none`): `seconds_per_prompt` of the runs, `cpu_seconds_per_prompt`
        (of all threads, which others on the machine disturb less), and `ratios`: CPU seconds of each run to
        those of `all` in the same turn, with their `median_ratio`.
    """
    names = Accelerations.names()
    variants = {ALL: Accelerations()}
    variants |= {f"without {name}": dataclasses.replace(Accelerations(), **{name: False}) for name in names}
    variants[NONE] = Accelerations.only(())
    loops = {
        name: Loop(
            build_rows(build_models(workload, dtype, "cpu"), workload, accelerations),
            workload.search,
            workload.sampling,
            StopChecker([], [], lambda ids: ""),
            max_rows=max_batch_rows,
        )
        for name, accelerations in variants.items()
    }
    tasks = workload.tasks(num_prompts)
    short = dataclasses.replace(tasks[0], max_tokens=workload.search.chunk_length)
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for run in range(runs + 1):
        for name, loop in loops.items():
            starts = time.perf_counter(), time.process_time()
            list(loop.run(tasks if run > 0 else [short]))
            if run > 0:  # the first round warms up
                wall[name].append((time.perf_counter() - starts[0]) / len(tasks))
                cpu[name].append((time.process_time() - starts[1]) / len(tasks))
    ratios = {
        name: [own / whole for own, whole in zip(cpu[name], cpu[ALL], strict=True)] for name in variants
    }
    return {
        name: {
            "seconds_per_prompt": wall[name],
            "cpu_seconds_per_prompt": cpu[name],
            "ratios": ratios[name],
            "median_ratio": statistics.median(ratios[name]),
        }
        for name in variants
    }
