"""Lockstep keeps the contract of all engines, with tables for models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.engine import PrefixScorer
from ivg.decoding.sequences import Finished, Task
from ivg.decoding.shared_ids import SharedIds
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.async_engine import AsyncLockstep
from ivg.engines.lockstep.batch import LockstepBatch
from ivg.engines.lockstep.guides import PairGuide, ScalarValueGuide, Weights
from ivg.engines.lockstep.kv_cache import RowCache
from ivg.engines.lockstep.loop import Loop
from ivg.engines.lockstep.model_runner import ModelRunner
from tests.engines.contract import EngineContract
from tests.engines.lockstep.tiny import Table
from tests.engines.worlds import World


class TestLockstep(EngineContract):
    def build(
        self,
        world: World,
        search: SearchConfig,
        sampling: SamplingConfig,
        stop_checker: StopChecker,
        scorer: PrefixScorer | None = None,
    ) -> LoopEngine:
        return LoopEngine(build_loop(world, search, sampling, stop_checker, scorer))

    def build_async(
        self, world: World, search: SearchConfig, sampling: SamplingConfig, stop_checker: StopChecker
    ) -> AsyncLockstep:
        return AsyncLockstep(build_loop(world, search, sampling, stop_checker, None))


class LoopEngine:
    """A loop over tables as an engine; `LockstepEngine` needs whole models."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def run(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        return self.loop.run(tasks)

    def close(self) -> None:
        self.loop.clear()


class ValueTable(nn.Module):
    """A backbone whose one hidden number is the value, by position and token."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values, requires_grad=False)

    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: RowCache,
        use_cache: bool,
    ) -> SimpleNamespace:
        keys = input_ids[:, None, :, None].to(self.values.dtype)
        past_key_values.update(keys, keys, 0)
        positions = position_ids.clamp(max=len(self.values) - 1)
        return SimpleNamespace(last_hidden_state=self.values[positions, input_ids][..., None])


def build_loop(
    world: World,
    search: SearchConfig,
    sampling: SamplingConfig,
    stop_checker: StopChecker,
    scorer: PrefixScorer | None,
    device: str = "cpu",
) -> Loop:
    base, tuned, untuned = (
        build_runner(Table(torch.from_numpy(table)).to(device), name, world.size)
        for name, table in (("base", world.base), ("tuned", world.tuned), ("untuned", world.untuned))
    )
    head = nn.Linear(1, 1, bias=False, dtype=torch.float64, device=device)
    nn.init.ones_(head.weight)
    pair = PairGuide(
        (tuned, untuned),
        SharedIds(world.size, world.size),
        Weights(
            guides_tokens=search.token_guidance == "implicit",
            beta=world.beta,
            chunk=float(search.chunk_guidance == "implicit"),
        ),
    )
    value = ScalarValueGuide(
        build_runner(
            ValueTable(torch.from_numpy(world.values)).to(device), "value", world.size, has_logits=False
        ),
        head.requires_grad_(False),
        Weights(chunk=float(search.chunk_guidance == "explicit")),
    )
    rows = LockstepBatch(base, [pair, value], sampling)
    return Loop(rows, search, sampling, stop_checker, max_rows=4_096, scorer=scorer)


def build_runner(module: nn.Module, name: str, size: int, *, has_logits: bool = True) -> ModelRunner:
    return ModelRunner(module, name=name, has_logits=has_logits, num_ids=size, max_length=None)
