"""Fixed buffers (what a GPU replays as a graph) give what growing caches give, step by step."""

from __future__ import annotations

import pytest
import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding import Decoder
from ivg.errors import UserError
from ivg.hypotheses import Endings, Task
from ivg.lockstep import static
from ivg.lockstep.fixed import FixedLane
from ivg.lockstep.guides import PairGuide, SharedIds, VocabularyValueGuide, Weights
from ivg.lockstep.lane import Lane
from ivg.lockstep.rows import Lockstep
from tests import tiny

NUM_IDS = len(tiny.LETTERS) + 2
MAX_TOKENS = 23


def lane(module: torch.nn.Module, *, has_logits: bool = True) -> Lane:
    return Lane(module, name="model", has_logits=has_logits, num_ids=NUM_IDS, max_length=64)


def decode(build, search: SearchConfig, *, max_rows: int, static_steps: bool) -> list[tuple]:
    shared = SharedIds(NUM_IDS, NUM_IDS)
    value = tiny.value(3, num_labels=NUM_IDS)
    guides = [
        PairGuide((lane(build(1)), lane(build(2))), shared, Weights(guides_tokens=True, beta=1.3, chunk=0.5)),
        VocabularyValueGuide(
            lane(value.transformer, has_logits=False), value.classifier, shared, Weights(chunk=1.0)
        ),
    ]
    sampling = SamplingConfig(max_new_tokens=MAX_TOKENS, temperature=0.8)
    rows = Lockstep(lane(build(0)), guides, sampling, static_steps=static_steps)
    tasks = [Task(i, str(i), (tuple(range(1, 3 + i)),) * 4, MAX_TOKENS - i % 3) for i in range(6)]
    decoder = Decoder(rows, search, sampling, Endings([NUM_IDS - 2], [], lambda ids: ""))
    return [
        (done.task.index, [(beam.ids, pytest.approx(beam.value, abs=1e-9)) for beam in done.beams])
        for done in decoder.run(tasks, max_rows)
    ]


@pytest.mark.parametrize("build", [tiny.causal, tiny.llama])
@pytest.mark.parametrize(
    ("num_beams", "num_successors", "max_rows"), [(2, 2, 8), (1, 1, 3), (2, 3, 100), (3, 1, 9)]
)
def test_fixed_buffers_change_nothing(
    build, num_beams: int, num_successors: int, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "COLUMN_STEP", 16)  # so that a run needs buffers of several shapes
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
    one = lane(module)
    state = one.prefill([[1, 2, 3], [4, 5]])
    fixed = FixedLane(one, state, num_rows=8, num_columns=16)
    fixed.load(state)
    fixed.step(torch.tensor([6, 7] + [0] * 6))
    alone = one.prefill([[4, 5, 7]])
    torch.testing.assert_close(fixed.state.last[1], alone.last[0])
    assert (fixed.state.last[1] - one.prefill([[4, 5, 6]]).last[0]).abs().max() > 1e-2


def test_sliding_windows_are_refused() -> None:
    with pytest.raises(UserError, match="static_steps needs full attention in every layer"):
        Lockstep(lane(tiny.mistral(0)), [], SamplingConfig(), static_steps=True)
