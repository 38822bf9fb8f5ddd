"""Fixed buffers (what a GPU replays as a graph) give what growing caches give, step by step."""

from __future__ import annotations

import pytest
import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.sequences import Task
from ivg.decoding.shared_ids import SharedIds
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep import cuda_graph
from ivg.engines.lockstep.batch import Lockstep
from ivg.engines.lockstep.cuda_graph import FixedLane
from ivg.engines.lockstep.guides import PairGuide, VocabularyValueGuide, Weights
from ivg.engines.lockstep.loop import Loop
from ivg.engines.lockstep.model_runner import ModelRunner
from ivg.errors import UserError
from tests import tiny

NUM_IDS = len(tiny.LETTERS) + 2
MAX_TOKENS = 23


def runner(module: torch.nn.Module, *, has_logits: bool = True) -> ModelRunner:
    return ModelRunner(module, name="model", has_logits=has_logits, num_ids=NUM_IDS, max_length=64)


def decode(build, search: SearchConfig, *, max_rows: int, static_steps: bool) -> list[tuple]:
    shared = SharedIds(NUM_IDS, NUM_IDS)
    value = tiny.value(3, num_labels=NUM_IDS)
    guides = [
        PairGuide(
            (runner(build(1)), runner(build(2))), shared, Weights(guides_tokens=True, beta=1.3, chunk=0.5)
        ),
        VocabularyValueGuide(
            runner(value.transformer, has_logits=False), value.classifier, shared, Weights(chunk=1.0)
        ),
    ]
    sampling = SamplingConfig(max_new_tokens=MAX_TOKENS, temperature=0.8)
    rows = Lockstep(runner(build(0)), guides, sampling, static_steps=static_steps)
    tasks = [Task(i, str(i), {"model": tuple(range(1, 3 + i))}, MAX_TOKENS - i % 3) for i in range(6)]
    stop_checker = StopChecker([NUM_IDS - 2], [], lambda ids: "")
    loop = Loop(rows, search, sampling, stop_checker, max_rows=max_rows)
    return [
        (done.task.index, [(beam.ids, pytest.approx(beam.value, abs=1e-9)) for beam in done.beams])
        for done in loop.run(tasks)
    ]


@pytest.mark.parametrize("build", [tiny.causal, tiny.llama])
@pytest.mark.parametrize(
    ("num_beams", "num_successors", "max_rows"), [(2, 2, 8), (1, 1, 3), (2, 3, 100), (3, 1, 9)]
)
def test_fixed_buffers_change_nothing(
    build, num_beams: int, num_successors: int, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "COLUMN_STEP", 16)  # so that a run needs buffers of several shapes
    search = SearchConfig(
        token_guidance="implicit",
        chunk_guidance="explicit",
        num_beams=num_beams,
        num_successors=num_successors,
        chunk_length=5,
    )
    grown = decode(build, search, max_rows=max_rows, static_steps=False)
    fixed = decode(build, search, max_rows=max_rows, static_steps=True)
    assert fixed == grown
    assert len({ids for _, beams in grown for ids, _ in beams}) > 3


def test_a_step_of_one_row_touches_no_other_row() -> None:
    module = tiny.causal(0)
    one = runner(module)
    state = one.prefill([[1, 2, 3], [4, 5]])
    fixed = FixedLane(one, state, num_rows=8, num_columns=16)
    fixed.load(state)
    fixed.step(torch.tensor([6, 7] + [0] * 6))
    alone = one.prefill([[4, 5, 7]])
    torch.testing.assert_close(fixed.state.last[1], alone.last[0])
    assert (fixed.state.last[1] - one.prefill([[4, 5, 6]]).last[0]).abs().max() > 1e-2


def test_sliding_windows_are_refused() -> None:
    with pytest.raises(UserError, match="static_steps needs full attention in every layer"):
        Lockstep(runner(tiny.mistral(0)), [], SamplingConfig(), static_steps=True)
