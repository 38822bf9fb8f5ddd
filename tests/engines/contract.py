"""What every engine must do. A new engine subclasses `EngineContract`, says how it is built, and passes.

Engines may draw in their own way, so results are compared in distribution and in greedy decoding; an engine
that takes the shared uniforms (`BeamSearch.uniforms`) also says so and is compared draw by draw.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.engine import AsyncEngine, Engine, PrefixScorer, in_order
from ivg.decoding.sequences import Finished, Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from tests.engines.worlds import (
    LENGTH,
    Ids,
    World,
    build_world,
    enumerate_search,
    enumerate_sequences,
    next_probs,
    p_value,
)

EOS = 2
MIN_P = 0.001
LETTERS = "abcdefgh"
MODELS = ("base", "tuned", "untuned", "value")
PLAIN = SearchConfig()
EFT = SearchConfig(token_guidance="implicit", chunk_length=2)
IVG = SearchConfig(
    token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=2, chunk_length=1
)


def make_tasks(num_tasks: int, *, max_tokens: int = LENGTH, first: int = 0) -> list[Task]:
    prompt_ids = dict.fromkeys(MODELS, (0,))
    return [
        Task(index=i, prompt_id=str(i), prompt_ids=prompt_ids, max_tokens=max_tokens)
        for i in range(first, first + num_tasks)
    ]


def make_stop_checker(eos: Sequence[int] = (EOS,), stop: Sequence[str] = ()) -> StopChecker:
    return StopChecker(eos, stop, lambda ids: "".join(LETTERS[i] for i in ids))


def answers(engine: Engine, tasks: Sequence[Task]) -> list[tuple[Ids, str | None]]:
    return [(f.beams[0].ids, f.beams[0].finish_reason) for f in in_order(tasks, engine.run(tasks))]


class EngineContract:
    """The tests; `build` and `build_async` are an engine's own.

    Attributes:
        takes_uniforms: whether it draws from the shared uniforms.
        num_samples: tasks in the tests of distributions.
        num_worlds: worlds in the test of greedy decoding.
    """

    takes_uniforms = True
    num_samples = 12_000
    num_worlds = 20

    def build(
        self,
        world: World,
        search: SearchConfig,
        sampling: SamplingConfig,
        stop_checker: StopChecker,
        scorer: PrefixScorer | None = None,
    ) -> Engine:
        raise NotImplementedError

    def build_async(
        self, world: World, search: SearchConfig, sampling: SamplingConfig, stop_checker: StopChecker
    ) -> AsyncEngine | None:
        return None

    # ----- identities

    def test_no_weight_is_the_base(self) -> None:
        world = build_world(1, 8, beta=0.0)
        sampling = SamplingConfig(max_new_tokens=LENGTH, seed=3)
        tasks, checker = make_tasks(200), make_stop_checker()
        guided = answers(self.build(world, EFT, sampling, checker), tasks)
        if self.takes_uniforms:
            assert guided == answers(self.build(world, PLAIN, sampling, checker), tasks)
        greedy = dataclasses.replace(sampling, temperature=0.0)
        assert answers(self.build(world, EFT, greedy, checker), tasks[:3]) == answers(
            self.build(world, PLAIN, greedy, checker), tasks[:3]
        )

    def test_equal_halves_of_a_pair_are_the_base(self) -> None:
        world = build_world(1, 8, beta=3.0)
        world = dataclasses.replace(world, untuned=world.tuned)
        sampling = SamplingConfig(max_new_tokens=LENGTH, temperature=0.0)
        assert answers(self.build(world, EFT, sampling, make_stop_checker()), make_tasks(3)) == answers(
            self.build(world, PLAIN, sampling, make_stop_checker()), make_tasks(3)
        )

    def test_greedy_takes_the_most_probable_token_of_the_formula(self) -> None:
        for seed in range(self.num_worlds):
            world = build_world(seed, 8, beta=1.5)
            sampling = SamplingConfig(max_new_tokens=LENGTH, temperature=0.0)
            probs = next_probs(world.base, world.tuned, world.untuned, beta=1.5)
            expected: Ids = ()
            while len(expected) < LENGTH and expected[-1:] != (EOS,):
                expected = (*expected, int(np.argmax(probs(expected))))
            ((ids, reason),) = answers(self.build(world, EFT, sampling, make_stop_checker()), make_tasks(1))
            assert ids == expected
            assert reason == ("eos" if expected[-1] == EOS else "length")

    def test_one_beam_with_one_successor_is_token_sampling(self) -> None:
        if not self.takes_uniforms:
            pytest.skip("compares draw by draw")
        world, sampling = build_world(2, 8), SamplingConfig(max_new_tokens=LENGTH, seed=5)
        search = SearchConfig(token_guidance="implicit", chunk_guidance="explicit", chunk_length=1)
        tasks, checker = make_tasks(100), make_stop_checker()
        assert answers(self.build(world, search, sampling, checker), tasks) == answers(
            self.build(world, EFT, sampling, checker), tasks
        )

    def test_a_chunk_as_long_as_the_response_is_best_of_n(self) -> None:
        """The best is the one that the value table says among all beams returned."""
        world, sampling = build_world(3, 8), SamplingConfig(max_new_tokens=LENGTH, seed=6)
        search = SearchConfig(chunk_guidance="explicit", num_beams=6, num_successors=1, chunk_length=LENGTH)
        tasks = make_tasks(50)
        for finished in self.build(world, search, sampling, make_stop_checker()).run(tasks):
            values = [world.value(beam.ids, "explicit") for beam in finished.beams]
            assert len(values) == 6
            assert values == sorted(values, reverse=True)
            assert [beam.value for beam in finished.beams] == pytest.approx(values, abs=1e-6)

    # ----- distributions

    @pytest.mark.slow
    def test_samples_follow_the_formula(self) -> None:
        world, sampling = build_world(0, 8), SamplingConfig(max_new_tokens=LENGTH, temperature=0.8, seed=11)
        engine = self.build(world, EFT, sampling, make_stop_checker((7,)))
        counts = Counter(ids for ids, _ in answers(engine, make_tasks(self.num_samples)))
        for beta, is_right in ((1.0, True), (1.25, False)):
            probs = next_probs(world.base, world.tuned, world.untuned, beta=beta, temperature=0.8)
            assert (p_value(counts, enumerate_sequences(probs, eos=7)) > MIN_P) is is_right

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["implicit", "explicit"])
    def test_search_follows_the_enumeration_of_all_draws(self, kind: str) -> None:
        world, sampling = build_world(52, 3, scale=0.4), SamplingConfig(max_new_tokens=LENGTH, seed=1)
        search = dataclasses.replace(IVG, chunk_guidance=kind)
        engine = self.build(world, search, sampling, make_stop_checker())
        counts = Counter(ids for ids, _ in answers(engine, make_tasks(self.num_samples)))
        probs = next_probs(world.base, world.tuned, world.untuned, beta=1.0)
        exact = enumerate_search(probs, lambda ids: world.value(ids, kind), eos=EOS, early=True)
        assert p_value(counts, exact) > MIN_P
        # A value that is read one token late is seen.
        late = enumerate_search(
            probs, lambda ids: world.value(ids[:-1], kind) if ids[1:] else 0.0, eos=EOS, early=True
        )
        assert p_value(counts, late) < MIN_P

    # ----- endings

    def test_every_eos_id_ends_a_response(self) -> None:
        world, sampling = build_world(5, 8, scale=0.3), SamplingConfig(max_new_tokens=LENGTH, seed=2)
        found = answers(self.build(world, EFT, sampling, make_stop_checker((2, 5))), make_tasks(200))
        assert {ids[-1] for ids, reason in found if reason == "eos"} == {2, 5}
        for ids, reason in found:
            assert not {2, 5} & set(ids[:-1])
            assert reason == ("eos" if ids[-1] in (2, 5) else "length")
            assert reason == "eos" or len(ids) == LENGTH

    def test_stop_strings_end_a_response_with_the_token_that_completes_them(self) -> None:
        world, sampling = build_world(5, 8, scale=0.3), SamplingConfig(max_new_tokens=LENGTH, seed=2)
        checker = make_stop_checker((7,), ("bc", "ddd", "f"))
        search = dataclasses.replace(IVG, chunk_length=2)
        seen = set()
        for finished in self.build(world, search, sampling, checker).run(make_tasks(200)):
            for beam in finished.beams:
                text = "".join(LETTERS[i] for i in beam.ids)
                has_stop = any(stop in text for stop in ("bc", "ddd", "f"))
                if beam.finish_reason == "stop":
                    assert has_stop
                    assert not any(stop in text[:-1] for stop in ("bc", "ddd", "f"))
                    assert "f" not in checker.text(beam)
                    seen.add(text[-1])
                else:
                    assert not has_stop
        assert seen == {"c", "d", "f"} or seen == {"c", "f"}

    def test_a_task_s_own_limit_ends_it(self) -> None:
        world, sampling = build_world(6, 8), SamplingConfig(max_new_tokens=LENGTH, seed=2)
        tasks = [
            dataclasses.replace(task, max_tokens=1 + task.index % LENGTH, limited_by="context")
            for task in make_tasks(30)
        ]
        found = answers(self.build(world, EFT, sampling, make_stop_checker((99,))), tasks)
        assert [len(ids) for ids, _ in found] == [task.max_tokens for task in tasks]
        assert {reason for _, reason in found} == {"context"}

    # ----- seeds and company

    def test_company_and_order_change_nothing(self) -> None:
        world, sampling = build_world(7, 8), SamplingConfig(max_new_tokens=LENGTH, seed=9)
        tasks = make_tasks(40)
        together = answers(self.build(world, IVG, sampling, make_stop_checker()), tasks)
        turned = answers(self.build(world, IVG, sampling, make_stop_checker()), tasks[::-1])
        alone = [answers(self.build(world, IVG, sampling, make_stop_checker()), [t])[0] for t in tasks[:5]]
        assert turned[::-1] == together
        assert alone == together[:5]
        assert len(set(together)) > 5

    def test_another_seed_is_another_draw(self) -> None:
        world, tasks = build_world(7, 8), make_tasks(40)
        runs = [
            answers(
                self.build(world, EFT, SamplingConfig(max_new_tokens=LENGTH, seed=seed), make_stop_checker()),
                tasks,
            )
            for seed in (0, 0, 1)
        ]
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    def test_scores_from_outside_are_added(self) -> None:
        """A scorer that outweighs the models' value: the answer ends in the largest token seen."""

        def prefer_large(tasks: Sequence[Task], prefixes: Sequence[Hypothesis]) -> list[float]:
            assert len(tasks) == len(prefixes)
            return [1000.0 * prefix.ids[-1] for prefix in prefixes]

        world, sampling = build_world(8, 8), SamplingConfig(max_new_tokens=1, seed=9)
        engine = self.build(world, IVG, sampling, make_stop_checker((99,)), prefer_large)
        for finished in engine.run(make_tasks(20, max_tokens=1)):
            kept = [beam.ids[-1] for beam in finished.beams]
            assert kept == sorted(kept, reverse=True)
            assert finished.beams[0].value == pytest.approx(
                1000.0 * kept[0] + world.value(finished.beams[0].ids, "explicit"), abs=1e-3
            )

    # ----- the asynchronous twin

    def test_requests_that_join_and_leave_get_what_they_get_alone(self) -> None:
        world, sampling = build_world(7, 8), SamplingConfig(max_new_tokens=LENGTH, seed=9)
        twin = self.build_async(world, IVG, sampling, make_stop_checker())
        if twin is None:
            pytest.skip("this engine has no asynchronous twin")
        tasks = make_tasks(30)
        expected = answers(self.build(world, IVG, sampling, make_stop_checker()), tasks)
        boundaries: Counter[int] = Counter()

        def watch(task: Task, beams: Sequence[Hypothesis], is_done: bool) -> None:
            boundaries[task.index] += 1

        async def serve() -> list[Finished | BaseException]:
            waits = [asyncio.create_task(twin.decode(task, watch)) for task in tasks[:20]]
            await asyncio.sleep(0)
            for wait in waits[::3]:
                wait.cancel()
            waits += [asyncio.create_task(twin.decode(task, watch)) for task in tasks[20:]]
            found = await asyncio.gather(*waits, return_exceptions=True)
            await twin.close()
            return found

        found = asyncio.run(asyncio.wait_for(serve(), 60))
        for i, (item, wanted) in enumerate(zip(found, expected, strict=True)):
            if i < 20 and i % 3 == 0:
                assert isinstance(item, asyncio.CancelledError)
            else:
                assert isinstance(item, Finished)
                assert (item.beams[0].ids, item.beams[0].finish_reason) == wanted
                assert boundaries[i] >= 1
