"""What a step costs more in long responses, and how much of that the longer cache explains."""

from __future__ import annotations

import dataclasses
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from ivg.config import SearchConfig
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.loop import Loop
from ivg.evaluation.benchmark.timing import median_seconds
from ivg.evaluation.benchmark.workloads import Workload, build_models, build_rows

RUNS = 3


def measure_lengths(
    workload: Workload, lengths: tuple[int, int], *, dtype: torch.dtype, device: str, num_prompts: int | None
) -> dict[str, Any]:
    """Time a step of all models for a short and a long response, all prompts in one batch.

    Returns:
        `seconds_per_step` by length, medians of interleaved runs; `extra`, what a step of the long response
        costs more; and `explained`, the difference in time of the attention and of the reorders alone, on
        tensors of the same shapes with the cache at its mean width.
    """
    models = build_models(workload, dtype, device)
    lockstep = build_rows(models, workload)
    tasks = workload.tasks(num_prompts)
    num_rows = len(tasks) * workload.search.rows_per_prompt
    stop_checker = StopChecker([], [], lambda ids: "")
    loop = Loop(lockstep, workload.search, workload.sampling, stop_checker, max_rows=num_rows)
    found: dict[int, list[float]] = {length: [] for length in lengths}
    for run in range(RUNS + 1):
        for length, seconds in found.items():
            capped = [dataclasses.replace(task, max_tokens=length) for task in tasks]
            start = time.perf_counter()
            list(loop.run(capped))
            if run > 0:  # the first round warms up
                seconds.append((time.perf_counter() - start) / length)
    prompt = statistics.mean(map(len, workload.prompts(num_prompts)))
    alone = {
        length: sum(
            cache_seconds(model, num_rows, int(prompt + length / 2), workload.search, dtype, device)
            for model in (models.base, models.tuned, models.untuned)
        )
        for length in lengths
    }
    short, long = lengths
    per_step = {length: statistics.median(seconds) for length, seconds in found.items()}
    return {
        "num_rows": num_rows,
        "seconds_per_step": per_step,
        "runs": found,
        "extra": per_step[long] - per_step[short],
        "explained": alone[long] - alone[short],
    }


def cache_seconds(
    model: PreTrainedModel, num_rows: int, width: int, search: SearchConfig, dtype: torch.dtype, device: str
) -> float:
    """Return the seconds per step that reading and reordering one model's cache take by themselves."""
    config = model.config
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    together = search.num_successors if device == "cpu" else 1  # rows that share one cache
    shape = (num_rows // together, heads, width, config.hidden_size // heads)
    keys, values = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    query = torch.randn(shape[0], heads, together, shape[-1], device=device, dtype=dtype)
    mask = torch.ones(shape[0], 1, together, width, device=device, dtype=torch.bool)
    spare = torch.empty_like(keys)
    order = torch.arange(shape[0], device=device)

    attention = median_seconds(
        partial(scaled_dot_product_attention, query, keys, values, attn_mask=mask), device
    )
    # Keys and values, reordered at each boundary for the kept rows; on a GPU once more for their successors.
    reorder = median_seconds(partial(torch.index_select, keys, 0, order, out=spare), device)
    return float(layers * (attention + (2 if together > 1 else 4) * reorder / search.chunk_length))
