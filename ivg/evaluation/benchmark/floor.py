"""The least time in which a machine could do a workload: reading what must be read, or multiplying it.

A step reads the weights of every model that steps, once for the whole batch, and of each prompt at least one
sequence's keys and values (its rows may share theirs). The value model reads its weights once per chunk.
"""

from __future__ import annotations

import dataclasses

import torch

from ivg.engines.lockstep.batch import LockstepBatch
from ivg.evaluation.benchmark.timing import median_seconds
from ivg.evaluation.benchmark.workloads import Shape, Workload


@dataclasses.dataclass(frozen=True, slots=True)
class Floor:
    """Lower bounds of the time for some work.

    Attributes:
        memory_seconds: to read weights, keys and values at the machine's memory rate.
        arithmetic_seconds: to multiply by the weights at its matrix-product rate; attention comes on top.
    """

    memory_seconds: float
    arithmetic_seconds: float

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.memory_seconds, self.arithmetic_seconds)


def bytes_per_prompt(workload: Workload, rows: LockstepBatch, batch_prompts: float, itemsize: int) -> float:
    """Count what must be read for one prompt's response.

    Args:
        workload: its shapes and lengths.
        rows: the models.
        batch_prompts: how many prompts share a step.
        itemsize: bytes of a number.
    """
    new, length = workload.new_tokens, workload.search.chunk_length
    reads = [new] * (len(rows.runners) - 1) + [new / length]  # the value model comes last
    weights = sum(n * runner.num_matrix_weights for n, runner in zip(reads, rows.runners, strict=True))
    shapes: list[Shape] = [workload.base] + [workload.guide] * (len(rows.runners) - 1)
    columns = sum(workload.prompt_lengths) / 2 + new / 2  # on average over a response
    states = sum(
        n * columns * 2 * shape.layers * shape.hidden for n, shape in zip(reads, shapes, strict=True)
    )
    return itemsize * (weights / batch_prompts + states)


def memory_rate(device: str) -> float:
    """Return bytes/s of reading half a gigabyte."""
    numbers = torch.ones(2**27, device=device)
    return numbers.nbytes / median_seconds(lambda: numbers.sum(), device)


def peak_rate(dtype: torch.dtype, device: str) -> float:
    """Return operations/s of large square matrix products."""
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: left @ right, device)
