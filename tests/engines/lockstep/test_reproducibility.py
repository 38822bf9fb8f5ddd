"""In float64 texts depend on nothing but prompts, settings and seed; so does a run short of memory."""

from __future__ import annotations

import functools
import logging
import random
import weakref

import pytest
import torch

from ivg import Response, SamplingConfig, SearchConfig, generate
from ivg.engines.lockstep.batch import LockstepBatch
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.errors import UserError
from ivg.models.loading import Models
from ivg.run.tasks import make_tasks
from tests.engines.lockstep import tiny

PROMPTS = [
    {"prompt": "".join(random.Random(i).choices("abcde .", k=1 + i % 9)) + "e", "id": i} for i in range(40)
]
SEARCH = SearchConfig(
    token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=2, chunk_length=3
)
SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.2, seed=9)


@functools.cache
def models() -> Models:
    base, tuned, untuned = (tiny.loaded(tiny.causal(seed), "base", f"m{seed}") for seed in range(3))
    value = tiny.loaded(tiny.value(5, 1), "value", "scalar", template="b. {prompt} a")
    return tiny.together(base, (tiny.pair(tuned, untuned),), (tiny.scorer(value),))


def by_id(prompts: list[dict], **options: int) -> dict[str, tuple[str, tuple[int, ...], float | None]]:
    found = generate(prompts, models(), search=SEARCH, sampling=SAMPLING, **options)
    assert [r.id for r in found] == [str(p["id"]) for p in prompts]
    return {r.id: (r.text, r.token_ids) for r in found}


@functools.cache
def expected() -> dict[str, tuple[str, tuple[int, ...]]]:
    return by_id(PROMPTS, max_batch_rows=64)


@pytest.mark.parametrize("max_batch_rows", [16, 64, 1000])
def test_texts_do_not_depend_on_the_batch(max_batch_rows: int) -> None:
    assert by_id(PROMPTS, max_batch_rows=max_batch_rows, block_size=17) == expected()
    assert len({text for text, _ in expected().values()}) > 30


def test_texts_do_not_depend_on_the_order_of_the_input() -> None:
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    assert by_id(shuffled, max_batch_rows=20) == expected()


def test_texts_do_not_depend_on_the_other_prompts() -> None:
    some = PROMPTS[5::7]
    assert by_id(some, max_batch_rows=8) == {str(p["id"]): expected()[str(p["id"])] for p in some}


def test_the_seed_and_the_id_decide() -> None:
    renamed = [{**prompt, "id": f"x{prompt['id']}"} for prompt in PROMPTS]
    assert list(by_id(renamed).values()) != list(expected().values())


@pytest.mark.parametrize("budget", [1, 300, 700])
def test_the_token_budget_bounds_rows_times_columns(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of one prompt may have more than the budget; the texts are the same."""
    right = expected()
    sizes: list[tuple[int, int]] = []
    real = LockstepBatch.sample_chunk

    def sample_chunk(rows: LockstepBatch, uniforms: torch.Tensor) -> object:
        chunk = real(rows, uniforms)
        sizes.append((rows.num_rows, max(state.mask.shape[1] for state in rows._states)))
        return chunk

    monkeypatch.setattr(LockstepBatch, "sample_chunk", sample_chunk)
    assert by_id(PROMPTS, max_batch_rows=64, max_batch_tokens=budget) == right
    several = [rows * width for rows, width in sizes if rows > 4]
    assert max(several, default=0) <= budget
    assert (budget == 1) == (not several)
    assert budget == 1 or max(several) > budget / 2  # and it is used


class Cramped:
    """A `LockstepBatch.sample_chunk` that runs out of memory above a number of rows."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peaks: list[int] = []
        real = LockstepBatch.sample_chunk

        def sample_chunk(rows: LockstepBatch, uniforms: torch.Tensor) -> object:
            self.peaks.append(rows.num_rows)
            if rows.num_rows > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(rows, uniforms)

        monkeypatch.setattr(LockstepBatch, "sample_chunk", sample_chunk)


def test_out_of_memory_halves_the_rows_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = expected()
    cramped = Cramped(20, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert by_id(PROMPTS, max_batch_rows=64) == right
    assert cramped.peaks[:3] == [64, 32, 16]
    assert max(cramped.peaks[2:]) <= 20
    assert [r.message.split(":")[0] for r in caplog.records] == [
        "out of memory with 64 rows",
        "out of memory with 32 rows",
    ]


def test_out_of_memory_gives_everything_back_before_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the step that failed had allocated, and the caches, make room for the next try."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    real_step, real_halve = LockstepBatch.sample_chunk, LockstepEngine._halve_rows

    def sample_chunk(rows: LockstepBatch, uniforms: torch.Tensor) -> object:
        scratch = torch.empty(1000)
        if len(held) == 1:
            held.append(weakref.ref(scratch))
            held.extend(weakref.ref(layer.keys) for layer in rows._states[0].cache.layers)
            raise torch.OutOfMemoryError("CUDA out of memory")
        held.append(weakref.ref(scratch)) if not held else None
        return real_step(rows, uniforms)

    def halve(engine: LockstepEngine) -> None:
        real_halve(engine)
        alive.extend(ref() is not None for ref in held)

    monkeypatch.setattr(LockstepBatch, "sample_chunk", sample_chunk)
    monkeypatch.setattr(LockstepEngine, "_halve_rows", halve)
    engine = LockstepEngine(models(), SEARCH, SAMPLING)
    tasks, _ = make_tasks(PROMPTS, engine.infos, SAMPLING)
    assert len(list(engine.run(tasks))) == len(tasks)
    assert len(alive) == 4  # what two steps had at hand, and the caches of two layers
    assert not any(alive)


def test_out_of_memory_is_run_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LockstepEngine(models(), SEARCH, SAMPLING)
    tasks, _ = make_tasks(PROMPTS, engine.infos, SAMPLING)
    cramped = Cramped(20, monkeypatch)
    list(engine.run(tasks))
    first = len(cramped.peaks)
    list(engine.run(tasks))  # as `ivg-decode` does, block by block
    assert max(cramped.peaks[:first]) == 64
    assert max(cramped.peaks[first:]) == 16


def test_out_of_memory_in_the_middle_of_a_block_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    right = expected()
    calls = [0]
    real = LockstepBatch.sample_chunk

    def sample_chunk(rows: LockstepBatch, uniforms: torch.Tensor) -> object:
        calls[0] += 1
        if calls[0] in (5, 11):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(rows, uniforms)

    monkeypatch.setattr(LockstepBatch, "sample_chunk", sample_chunk)
    assert by_id(PROMPTS, max_batch_rows=64) == right
    assert calls[0] > 11


def test_out_of_memory_with_one_prompt_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    Cramped(3, monkeypatch)
    with pytest.raises(UserError, match="out of memory with 4 rows, and one prompt needs 4; lower num_beams"):
        by_id(PROMPTS[:2], max_batch_rows=8)


def test_responses_are_complete() -> None:
    found: list[Response] = generate(PROMPTS, models(), search=SEARCH, sampling=SAMPLING)
    assert {r.finish_reason for r in found} == {"eos", "length"}
    assert all(1 <= r.num_tokens == len(r.token_ids) <= 12 for r in found)
    assert all(len(r.beams) == 2 and r.beams[0].value >= r.beams[1].value for r in found)
