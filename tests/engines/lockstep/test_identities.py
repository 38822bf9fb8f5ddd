"""Identities that must hold exactly, in float64: they tie every special case to plain sampling."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ivg import Response, SamplingConfig, SearchConfig, generate
from tests.engines.lockstep import reference, tiny
from tests.engines.lockstep.tiny import TOKENS, V

PROMPTS = ["a", "bca", "deadbeef"[:6], "c d.", "a.a.a.abc", "eee"]
SAMPLING = SamplingConfig(max_new_tokens=14, temperature=1.1, seed=4, stop=("dd",))
BASE, TUNED, UNTUNED = (tiny.loaded(tiny.causal(seed), "base", f"m{seed}") for seed in range(3))
SCALAR = tiny.loaded(tiny.value(5, 1), "value", "scalar")
VOCABULARY = tiny.loaded(tiny.value(6, V), "value", "vocabulary")
PLAIN = tiny.together(BASE)
EFT = SearchConfig(token_guidance="implicit")


def answers(responses: list[Response]) -> list[tuple[object, ...]]:
    return [(r.id, r.text, r.token_ids, r.finish_reason) for r in responses]


def plain() -> list[tuple[object, ...]]:
    return answers(generate(PROMPTS, PLAIN, sampling=SAMPLING))


def with_pair(
    tuned: object, untuned: object, search: SearchConfig = EFT, **options: object
) -> list[Response]:
    return generate(
        PROMPTS,
        tiny.together(BASE, (tiny.pair(tuned, untuned, **options),)),
        search=search,
        sampling=SAMPLING,
    )


def test_guidance_changes_the_text() -> None:
    """Else the identities below would say nothing."""
    assert answers(with_pair(TUNED, UNTUNED)) != plain()
    assert len({text for _, text, _, _ in plain()}) > 3


def test_beta_zero_is_the_base() -> None:
    assert answers(with_pair(TUNED, UNTUNED, beta=0.0)) == plain()
    models = tiny.together(BASE, values=(tiny.scorer(VOCABULARY, beta=0.0),))
    search = SearchConfig(token_guidance="explicit")
    assert answers(generate(PROMPTS, models, search=search, sampling=SAMPLING)) == plain()


def test_tuned_equal_to_untuned_is_the_base() -> None:
    assert answers(with_pair(TUNED, TUNED, beta=3.0)) == plain()


def test_opposite_pairs_cancel() -> None:
    models = tiny.together(BASE, (tiny.pair(TUNED, UNTUNED, beta=1.5), tiny.pair(UNTUNED, TUNED, beta=1.5)))
    assert answers(generate(PROMPTS, models, search=EFT, sampling=SAMPLING)) == plain()


def test_beta_one_with_the_base_as_untuned_is_tuned() -> None:
    assert answers(with_pair(TUNED, BASE)) == answers(
        generate(PROMPTS, tiny.together(TUNED), sampling=SAMPLING)
    )


@pytest.mark.parametrize("chunk", ["implicit", "explicit"])
@pytest.mark.parametrize("length", [1, 4, 30])
def test_one_beam_with_one_successor_is_token_sampling(chunk: str, length: int) -> None:
    models = tiny.together(BASE, (tiny.pair(TUNED, UNTUNED),), (tiny.scorer(SCALAR),))
    search = SearchConfig(token_guidance="implicit", chunk_guidance=chunk, chunk_length=length)
    assert answers(generate(PROMPTS, models, search=search, sampling=SAMPLING)) == answers(
        with_pair(TUNED, UNTUNED)
    )


@pytest.mark.parametrize("length", [14, 100])
def test_a_chunk_as_long_as_the_response_is_best_of_n(length: int) -> None:
    """The best of N independent samples, chosen by a value that is computed here by the plain model."""
    models = tiny.together(BASE, values=(tiny.scorer(SCALAR),))
    search = SearchConfig(chunk_guidance="explicit", num_successors=6, chunk_length=length)
    best = generate(PROMPTS, models, search=search, sampling=SAMPLING)
    several = generate(PROMPTS, PLAIN, sampling=dataclasses.replace(SAMPLING, num_samples=6))
    scorer = reference.Value(reference.Model(SCALAR.module, lambda prompt: prompt), is_scalar=True)
    plain = reference.Model(BASE.module, lambda prompt: prompt)
    slow = reference.Reference(plain, [], [scorer], [tiny.EOS], search, SAMPLING)
    for i, prompt in enumerate(PROMPTS):
        samples = several[6 * i : 6 * i + 6]
        read = [slow.as_trained(sample.token_ids, sample.finish_reason) for sample in samples]
        values = [scorer.chunk_value(prompt, ids) for ids in read]
        winner = samples[values.index(max(values))]
        assert best[i].token_ids == winner.token_ids
        assert best[i].text == winner.text
        assert best[i].value == pytest.approx(max(values), abs=1e-9)


def test_a_padded_batch_equals_singles() -> None:
    models = tiny.together(BASE, (tiny.pair(TUNED, UNTUNED),), (tiny.scorer(SCALAR),))
    search = SearchConfig(
        token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=2, chunk_length=3
    )
    rows = [{"prompt": prompt, "id": str(i)} for i, prompt in enumerate(PROMPTS)]
    together = answers(generate(rows, models, search=search, sampling=SAMPLING, max_batch_rows=100))
    alone = [answers(generate([row], models, search=search, sampling=SAMPLING))[0] for row in rows]
    assert together == alone


def test_greedy_equals_transformers_generate() -> None:
    found = generate(PROMPTS, PLAIN, sampling=SamplingConfig(max_new_tokens=12, temperature=0))
    for prompt, response in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([[TOKENS.index(c) for c in prompt]])
        expected = BASE.module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        assert list(response.token_ids) == expected[0, ids.shape[1] :].tolist()


def test_the_weights_are_the_same_bits_before_and_after() -> None:
    everything = (BASE, TUNED, UNTUNED, SCALAR, VOCABULARY)
    before = [{k: v.clone() for k, v in m.module.state_dict().items()} for m in everything]
    models = tiny.together(
        BASE, (tiny.pair(TUNED, UNTUNED),), (tiny.scorer(SCALAR), tiny.scorer(VOCABULARY, weight=0.5))
    )
    search = SearchConfig(token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=2)
    generate(PROMPTS, models, search=search, sampling=SAMPLING)
    for old, model in zip(before, everything, strict=True):
        new = model.module.state_dict()
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name].view(torch.int64), new[name].view(torch.int64)) for name in old)
