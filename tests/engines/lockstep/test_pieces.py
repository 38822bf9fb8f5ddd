"""Long chunks are sampled in pieces, so that rows that end leave the batch before the boundary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ivg import SamplingConfig, SearchConfig, generate
from ivg.engines.lockstep.batch import LockstepBatch
from ivg.engines.lockstep.loop import piece_length
from tests.engines.lockstep import tiny
from tests.engines.lockstep.tiny import EOS, V

PROMPTS = [{"prompt": prompt, "id": str(i)} for i, prompt in enumerate("abcdeedcba")]


@pytest.mark.parametrize(
    ("chunk_length", "max_tokens", "expected"),
    [
        (5, 72, 5),
        (30, 400, 10),
        (72, 400, 9),
        (17, 400, 17),  # no piece of 5 to 10 divides it
        (4, 400, 4),
        (72, 72, 10),  # the only chunk: nothing has to meet at its end
        (72, 6, 6),
    ],
)
def test_pieces_divide_chunks_equally(chunk_length: int, max_tokens: int, expected: int) -> None:
    assert piece_length(chunk_length, max_tokens) == expected


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The (rows, steps) of every piece that is sampled."""
    seen: list[tuple[int, ...]] = []
    real: Callable[[LockstepBatch, torch.Tensor], object] = LockstepBatch.sample_chunk

    def sample_chunk(rows: LockstepBatch, uniforms: torch.Tensor) -> object:
        seen.append(tuple(uniforms.shape))
        return real(rows, uniforms)

    monkeypatch.setattr(LockstepBatch, "sample_chunk", sample_chunk)
    return seen


def decode(search: SearchConfig, max_batch_rows: int, max_new_tokens: int) -> int:
    """Decode with a base that ends soon; return the tokens of the longest response."""
    base = tiny.loaded(tiny.causal(0), "base", "m0", template=None, eos=[EOS, 0, 1])
    ranker = tiny.scorer(tiny.loaded(tiny.value(6, V), "value", "v6", template=None))
    responses = generate(
        PROMPTS,
        tiny.together(base, (), (ranker,)),
        search=search,
        sampling=SamplingConfig(max_new_tokens=max_new_tokens),
        max_batch_rows=max_batch_rows,
    )
    return max(response.num_tokens for response in responses)


def test_best_of_n_does_not_sample_past_its_longest_row(shapes: list[tuple[int, ...]]) -> None:
    best_of_4 = SearchConfig(chunk_guidance="explicit", num_beams=1, num_successors=4, chunk_length=60)
    decode(best_of_4, max_batch_rows=40, max_new_tokens=60)
    assert {steps for _, steps in shapes} == {10}
    rows = [num_rows for num_rows, _ in shapes]
    assert rows[0] == 40
    assert rows == sorted(rows, reverse=True)
    assert sum(rows) * 10 < 40 * 60 / 3  # three tokens in ten end a row


def test_the_row_budget_is_kept_and_used(shapes: list[tuple[int, ...]]) -> None:
    search = SearchConfig(chunk_guidance="explicit", num_beams=2, num_successors=2, chunk_length=10)
    decode(search, max_batch_rows=12, max_new_tokens=40)
    assert max(num_rows for num_rows, _ in shapes) == 12
