"""The engine picks the same tokens as the slow reference, in float64, whatever the configuration."""

from __future__ import annotations

import functools
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from ivg import SamplingConfig, SearchConfig, generate
from ivg.models.loading import LoadedModel, LoadedPair, LoadedValue
from tests.engines.lockstep import reference, tiny
from tests.engines.lockstep.tiny import EOS, PAD, V

KINDS = ("none", "implicit", "explicit")
TEMPLATES = {
    None: lambda prompt: prompt,
    "b. {prompt} a": lambda prompt: f"b. {prompt} a",
    "{prompt}.dede": lambda prompt: f"{prompt}.dede",
    "chat": lambda prompt: f"u.{prompt} a.",
}


class Twin(NamedTuple):
    """A model as the engine and as the reference see it."""

    loaded: LoadedModel
    plain: reference.Model


@functools.cache
def causal(seed: int, template: str | None, eos: tuple[int, ...] = ()) -> Twin:
    model = tiny.causal(seed)
    loaded = tiny.loaded(
        model, "base" if seed == 0 else "tuned", f"m{seed} in {template}", template=template, eos=list(eos)
    )
    return Twin(loaded, reference.Model(model, TEMPLATES[template]))


@functools.cache
def value(seed: int, num_labels: int, template: str | None) -> Twin:
    model = tiny.value(seed, num_labels)
    return Twin(
        tiny.loaded(model, "value", f"v{seed} in {template}", template=template),
        reference.Model(model, TEMPLATES[template]),
    )


templates = st.sampled_from(list(TEMPLATES))
weights = st.sampled_from([None, 0.5, -1.0, 2.0])
betas = st.sampled_from([0.0, 0.4, 1.0, 2.5])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[LoadedPair, reference.Pair]:
    seed = draw(st.sampled_from([1, 3]))
    tuned, untuned = causal(seed, draw(templates)), causal(seed + 1, draw(templates))
    options = {"beta": draw(betas), "chunk_weight": draw(weights), "average": draw(st.booleans())}
    return (
        tiny.pair(tuned.loaded, untuned.loaded, **options),
        reference.Pair(tuned.plain, untuned.plain, **options),
    )


@st.composite
def values(draw: st.DrawFn, only_vocabulary: bool) -> tuple[LoadedValue, reference.Value]:
    is_scalar = False if only_vocabulary else draw(st.booleans())
    twin = value(5, 1, draw(templates)) if is_scalar else value(6, V, draw(templates))
    options = {"weight": draw(weights), "beta": draw(betas)}
    return tiny.scorer(twin.loaded, **options), reference.Value(twin.plain, is_scalar, **options)


@st.composite
def cases(draw: st.DrawFn, token: str, chunk: str) -> dict[str, object]:
    rows = st.integers(1, 3)
    width, successors = (1, 1) if chunk == "none" else (draw(rows), draw(rows))
    is_greedy = width * successors == 1 and draw(st.booleans())
    search = SearchConfig(
        token_guidance=token,
        chunk_guidance=chunk,
        num_beams=width,
        num_successors=successors,
        chunk_length=draw(st.integers(1, 7)),
        early_stopping=draw(st.sampled_from([None, True, False])),
    )
    sampling = SamplingConfig(
        max_new_tokens=draw(st.integers(1, 9)),
        temperature=0 if is_greedy else draw(st.sampled_from([0.5, 1.0, 1.7])),
        top_k=draw(st.sampled_from([0, 0, 3])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.8])),
        stop=draw(st.sampled_from([(), (), ("bc",), ("ca", "ee"), ("dab", ". "), ("abcd",)])),
        seed=draw(st.integers(0, 5)),
        num_samples=draw(st.integers(1, 3)) if chunk == "none" and not is_greedy else 1,
    )
    needs_pair, needs_value = "implicit" in (token, chunk), "explicit" in (token, chunk)
    return {
        "search": search,
        "sampling": sampling,
        # Where values rank, one id: of one text ended by several, all with one value, rounding would choose.
        "eos": draw(
            st.sampled_from([(EOS,), (PAD,), (8,), *([(EOS, PAD), (EOS, 8, 3)] if chunk == "none" else [])])
        ),
        "template": draw(templates),
        "pairs": draw(st.lists(pairs(), min_size=needs_pair, max_size=2)),
        "values": draw(st.lists(values(token == "explicit"), min_size=needs_value, max_size=2)),
        "prompts": draw(st.lists(st.sampled_from(["a", "bca", "deadbeeed", "c d"]), min_size=1, max_size=3)),
        "more_rows": draw(st.integers(0, 9)),
        "max_piece": draw(st.integers(1, 4)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("chunk", KINDS)
@pytest.mark.parametrize("token", KINDS)
@settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
@given(data=st.data())
def test_engine_agrees_with_the_reference(token: str, chunk: str, data: st.DataObject) -> None:
    case = data.draw(cases(token, chunk))
    search, sampling, prompts = case["search"], case["sampling"], case["prompts"]
    base = causal(0, case["template"], case["eos"])
    models = tiny.together(
        base.loaded, tuple(p for p, _ in case["pairs"]), tuple(v for v, _ in case["values"])
    )
    slow = reference.Reference(
        base.plain,
        [p for _, p in case["pairs"]],
        [v for _, v in case["values"]],
        case["eos"],
        search,
        sampling,
    )
    # Responses are too short here for pieces of the usual length.
    with mock.patch.multiple("ivg.engines.lockstep.loop", MIN_PIECE=1, MAX_PIECE=case["max_piece"]):
        responses = generate(
            [{"prompt": prompt, "id": f"p{i}"} for i, prompt in enumerate(prompts)],
            models,
            search=search,
            sampling=sampling,
            max_batch_rows=search.rows_per_prompt + case["more_rows"],
            block_size=2,
        )
    assert len(responses) == len(prompts) * sampling.num_samples
    for n, response in enumerate(responses):
        index, sample = divmod(n, sampling.num_samples)
        beams = slow.respond(prompts[index], f"p{index}", sample)
        # An EOS id that ends a response and the guides' own one where it ends nothing are read alike: of two
        # candidates with one value rounding decides which comes first.
        assume(min(slow.gaps, default=1.0) > 1e-9)
        assert [b.token_ids for b in response.beams] == [b.ids for b in beams]
        assert [b.finish_reason for b in response.beams] == [b.reason for b in beams]
        assert np.allclose([b.value for b in response.beams], [b.value for b in beams], rtol=0, atol=1e-9)
        assert response.text == (
            slow.cut(beams[0].ids) if beams[0].reason == "stop" else slow.text(beams[0].ids)
        )
        assert response.num_tokens == len(beams[0].ids)
        assert (response.value is None) is (search.chunk_guidance == "none")
        event(f"ended by {response.finish_reason}")


def test_the_reference_sees_a_late_value() -> None:
    """A value taken one token late changes what the reference keeps, so agreement above means something."""
    scalar = value(5, 1, None)
    prompt, ids = "bca", (0, 4, 2, 1)
    right = reference.Value(scalar.plain, is_scalar=True).chunk_value(prompt, ids)
    late = reference.Value(scalar.plain, is_scalar=True).chunk_value(prompt, ids[:-1])
    assert abs(right - late) > 1e-2


def test_configurations_are_what_they_claim() -> None:
    """The pool holds models whose outputs differ clearly, so that a mixed-up runner would show."""
    outputs = [causal(seed, None).plain.outputs("bca", ())[-1] for seed in range(5)]
    for i, one in enumerate(outputs):
        assert one.std() > 1
        assert all(np.abs(one - other).max() > 1 for other in outputs[:i])
