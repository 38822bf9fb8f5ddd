"""Token guidance over shared strings: how tokens map, and the guided distribution itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import ivg
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig
from ivg.decoding.draws import Draws
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.errors import UserError
from ivg.models.cross_vocab import TokenReadings, read_tokens
from ivg.models.loading import Models, load_models
from ivg.models.plan import inspect_models, plan_guides
from ivg.models.prompts import as_rows, encode_prompt
from ivg.models.vocab import compare
from ivg.run.tasks import make_tasks
from tests.models import tiny
from tests.models.vocabularies import bytewise, spaced
from tests.shared_data import TOKENIZERS
from tests.tiny import llama, mistral, save

needs_data = pytest.mark.skipif(not TOKENIZERS.is_dir(), reason=f"no real tokenizers at {TOKENIZERS}")


@cache
def _real(name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZERS / name)


def _pair(tuned: str, untuned: str, **kwargs: object) -> PairConfig:
    return PairConfig(
        tuned=ModelConfig(path=tuned),
        untuned=ModelConfig(path=untuned),
        vocab_mapping="shared-strings",
        **kwargs,  # type: ignore[arg-type]
    )


def _read(
    base: PreTrainedTokenizerBase, guide: PreTrainedTokenizerBase, num_ids: int, *, opens_turn: bool = False
) -> TokenReadings:
    return read_tokens(
        base,
        guide,
        num_ids=num_ids,
        eos_ids=(base.eos_token_id,),
        end_id=guide.eos_token_id,
        opens_turn=opens_turn,
    )


def test_tokens_are_read_by_their_bytes_else_by_text() -> None:
    # The merged guide as the base: its pairs of characters are two tokens of the other vocabulary.
    base, guide = tiny.pair_tokenizer(), tiny.base_tokenizer()
    readings = _read(base, guide, len(base) + 1).inside
    ids = base.get_vocab()
    theirs = guide.get_vocab()
    assert readings.pieces[ids["c"]] == (theirs["c"],)
    assert readings.counterparts[ids["c"]] == theirs["c"]
    assert readings.pieces[ids["ab"]] == (theirs["a"], theirs["b"])
    assert readings.counterparts[ids["ab"]] is None
    assert readings.counterparts[ids["</s>"]] == theirs["<eos>"]  # no such string there: EOS stands for EOS
    assert readings.pieces[ids["<s>"]] == ()
    assert readings.counterparts[ids["<s>"]] is None
    assert readings.pieces[len(base)] == ()  # a padded tail
    assert max(map(len, readings.pieces)) == 2


@needs_data
def test_real_vocabularies_of_equal_size_are_not_equal() -> None:
    base, guide = _real("llama-2"), _real("mistral")
    match = compare(base, guide)
    assert len(base) == len(guide) == match.num_base == 32_000
    assert (match.num_shared, match.num_same_id) == (24_184, 270)
    assert not match.agrees


@needs_data
def test_real_tokens_read_back_as_their_text() -> None:
    base, guide = _real("llama-2"), _real("mistral")
    readings = _read(base, guide, 32_000).inside
    assert sum(c is not None for c in readings.counterparts) == 24_184
    assert all(readings.pieces[i] == (c,) for i, c in enumerate(readings.counterparts) if c is not None)
    theirs = guide.get_vocab()
    newline = base.convert_tokens_to_ids("<0x0A>")
    assert readings.pieces[newline] == (theirs["<0x0A>"],)
    # Not shared: " Sverige" and "Sverige" keep their space, or its absence, inside a text.
    own = base.get_vocab()
    missing = [t for t in own if t not in theirs and t not in base.all_special_tokens]
    assert len(missing) == 32_000 - 24_184
    opening = guide("x", add_special_tokens=False)["input_ids"]
    start = len(guide.decode(opening))
    for token in missing[::97]:
        text = token.replace("▁", " ")
        assert guide.decode([*opening, *readings.pieces[own[token]]])[start:] == text


def _real_model(folder: Path, name: str, seed: int, window: int | None) -> tuple[str, PreTrainedModel]:
    if window is None:
        model: PreTrainedModel = llama(seed, 32_000, max_position_embeddings=256)
    else:
        model = mistral(seed, 32_000, window=window)
    model.config.update({"bos_token_id": 1, "eos_token_id": 2})
    model.generation_config.eos_token_id = 2
    return save(folder, model, _real(name)), model


@needs_data
@pytest.mark.slow
def test_guidance_over_real_vocabularies_equals_a_slow_reference(tmp_path: Path) -> None:
    """The guides attend over six tokens only: a gap left between a row's tokens would show."""
    base, base_model = _real_model(tmp_path / "base", "llama-2", 0, None)
    tuned, tuned_model = _real_model(tmp_path / "tuned", "mistral", 1, 6)
    untuned, untuned_model = _real_model(tmp_path / "untuned", "mistral", 2, 6)
    models = load_models(base, pairs=[_pair(tuned, untuned, beta=0.7)])
    prompts = ["The film was", "Vi bor i Sverige och dricker kaffe,", "x"]
    sampling = SamplingConfig(max_new_tokens=12, seed=1)
    responses = ivg.generate(
        prompts, models, search=SearchConfig(token_guidance="implicit", chunk_length=5), sampling=sampling
    )
    llama, mistral = _real("llama-2"), _real("mistral")
    readings = _read(llama, mistral, 32_000).inside
    shared = [i for i, c in enumerate(readings.counterparts) if c is not None]
    counterparts = [c for c in readings.counterparts if c is not None]
    num_split = 0
    for prompt, response in zip(prompts, responses, strict=True):
        ids, own = llama(prompt)["input_ids"], mistral(prompt)["input_ids"]
        uniforms = Draws(1, response.id, 1).next(12)[0]
        for position, token in enumerate(response.token_ids):
            scores = base_model(torch.tensor([ids])).logits[0, -1].clone()
            logps = [
                m(torch.tensor([own])).logits[0, -1].log_softmax(-1) for m in (tuned_model, untuned_model)
            ]
            scores[shared] += 0.7 * (logps[0] - logps[1])[counterparts]
            mass = scores.softmax(-1).cumsum(-1).numpy()
            assert token == np.searchsorted(mass, uniforms[position] * mass[-1], side="right")
            ids, own = [*ids, token], [*own, *readings.pieces[token]]
            num_split += len(readings.pieces[token]) != 1
    assert num_split > 3


@needs_data
@pytest.mark.slow
def test_without_the_mapping_real_vocabularies_are_refused_with_their_overlap(tmp_path: Path) -> None:
    base, _ = _real_model(tmp_path / "base", "llama-2", 0, None)
    guide, _ = _real_model(tmp_path / "guide", "mistral", 1, None)
    pair = PairConfig(tuned=ModelConfig(path=guide), untuned=ModelConfig(path=guide))
    infos = inspect_models(ModelConfig(path=base), [pair])
    with pytest.raises(UserError, match=r"24,184 of the base's 32,000 token strings are shared, 270 under"):
        plan_guides(infos, SearchConfig(token_guidance="implicit"))


def _tiny_models(tmp_path: Path, *, n_positions: int = 64) -> Models:
    """The base writes merged pairs, the guides read characters: rows grow by different amounts."""
    config = tiny.pair_config()
    base = save(tmp_path / "base", tiny.scaled(GPT2LMHeadModel(config), 0, factor=4), tiny.pair_tokenizer())
    folders = []
    for seed, name in ((1, "tuned"), (2, "untuned")):
        guide_config = tiny.gpt2_config(len(tiny.LETTERS) + 2, eos_token_id=tiny.BASE_EOS)
        guide_config.n_positions = n_positions
        model = tiny.scaled(GPT2LMHeadModel(guide_config), seed, factor=6)
        folders.append(save(tmp_path / name, model, tiny.base_tokenizer()))
    return load_models(base, pairs=[_pair(*folders, beta=0.8)])


PROMPTS = ["ab", "cafe bad.", "f", "dead ace", "bead"]


def _expected_ids(models: Models, prompt: str, name: str, room: int | None) -> list[int]:
    """Decode one prompt by the definition, each prefix from scratch."""
    loaded = (models.base, models.pairs[0].tuned, models.pairs[0].untuned)
    base, guide = (model.info.tokenizer for model in loaded[:2])
    opens_turn = models.pairs[0].tuned.info.template == "chat"
    readings = _read(base, guide, len(base), opens_turn=opens_turn)
    modules = [model.module for model in loaded]
    ids, own = (encode_prompt(tokenizer, {"prompt": prompt}) for tokenizer in (base, guide))
    uniforms = Draws(4, name, 1).next(14)[0]
    start, own_start = len(ids), len(own)
    for uniform in uniforms:
        reading = readings.opening if len(own) == own_start else readings.inside
        scores = modules[0](torch.tensor([ids])).logits[0, -1].clone()
        is_guided = room is None or len(own) + readings.max_pieces <= room
        if is_guided:
            tuned, untuned = (m(torch.tensor([own])).logits[0, -1].log_softmax(-1) for m in modules[1:])
            for id_, counterpart in enumerate(reading.counterparts):
                if counterpart is not None:
                    scores[id_] += 0.8 * (tuned - untuned)[counterpart]
        mass = scores.softmax(-1).cumsum(-1).numpy()
        token = int(np.searchsorted(mass, uniform * mass[-1], side="right"))
        ids = [*ids, token]
        own = [*own, *(reading.pieces[token] if is_guided else ())]
        if token == base.eos_token_id:
            break
    return ids[start:]


@pytest.mark.parametrize("chunk_length", [1, 4, 30])
def test_guided_draws_equal_a_slow_reference(tmp_path: Path, chunk_length: int) -> None:
    models = _tiny_models(tmp_path)
    search = SearchConfig(token_guidance="implicit", chunk_length=chunk_length)
    sampling = SamplingConfig(max_new_tokens=14, seed=4)
    for response in ivg.generate(PROMPTS, models, search=search, sampling=sampling, max_batch_rows=3):
        assert list(response.token_ids) == _expected_ids(models, response.prompt["prompt"], response.id, None)


def _turned_models(tmp_path: Path) -> Models:
    """Both have a chat template; the base spells text SentencePiece's way, the guides in bytes."""
    folders = []
    for seed, name in enumerate(("base", "tuned", "untuned")):
        tokenizer = spaced(chat=True) if name == "base" else bytewise(chat=True)
        config = tiny.gpt2_config(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        model = tiny.scaled(GPT2LMHeadModel(config), seed, factor=8)
        folders.append(save(tmp_path / name, model, tokenizer))
    return load_models(folders[0], pairs=[_pair(*folders[1:], beta=0.8)])


def test_the_first_token_of_a_turn_is_read_as_an_opening(tmp_path: Path) -> None:
    models = _turned_models(tmp_path)
    (plan,) = plan_guides(models.infos, SearchConfig(token_guidance="implicit"))
    assert plan.fit.readings is not None
    assert plan.fit.readings.opening is not plan.fit.readings.inside
    search = SearchConfig(token_guidance="implicit", chunk_length=4)
    sampling = SamplingConfig(max_new_tokens=14, seed=4)
    prompts = [f"{a}{b}" for a in "the a" for b in "the a"][:8]
    responses = ivg.generate(prompts, models, search=search, sampling=sampling, max_batch_rows=3)
    for response in responses:
        assert list(response.token_ids) == _expected_ids(models, response.prompt["prompt"], response.id, None)
    assert len({response.token_ids[0] for response in responses}) > 4


def test_guidance_ends_where_the_guides_context_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = _tiny_models(tmp_path, n_positions=23)
    search = SearchConfig(token_guidance="implicit", chunk_length=4)
    sampling = SamplingConfig(max_new_tokens=14, seed=4)
    responses = ivg.generate(PROMPTS, models, search=search, sampling=sampling)
    for response in responses:
        assert list(response.token_ids) == _expected_ids(models, response.prompt["prompt"], response.id, 23)
    assert any("from there on it is not guided" in message for message in caplog.messages)


def test_a_search_ranks_such_a_pair_through_text(tmp_path: Path) -> None:
    models = _tiny_models(tmp_path)
    search = SearchConfig(
        token_guidance="implicit", chunk_guidance="implicit", num_beams=2, num_successors=2, chunk_length=3
    )
    engine = LockstepEngine(models, search, SamplingConfig(max_new_tokens=9, seed=4), max_batch_rows=8)
    tasks, _ = make_tasks(as_rows(PROMPTS), engine.infos, SamplingConfig(max_new_tokens=9, seed=4))
    guide = tiny.base_tokenizer()
    num_checked = 0
    for finished in engine.run(tasks):
        for beam in finished.beams:
            before = guide(finished.task.record["prompt"])["input_ids"]
            text = tiny.pair_tokenizer().decode(list(beam.ids), skip_special_tokens=True)
            ids = [
                *before,
                *guide(text)["input_ids"],
                *([tiny.BASE_EOS] if beam.finish_reason == "eos" else []),
            ]
            sums = [
                sum(float(logps[i - 1, ids[i]]) for i in range(len(before), len(ids)))
                for logps in (
                    m.module(torch.tensor([ids])).logits[0].log_softmax(-1)
                    for m in (models.pairs[0].tuned, models.pairs[0].untuned)
                )
            ]
            assert beam.value == pytest.approx(sums[0] - sums[1], abs=1e-9)
            num_checked += 1
    assert num_checked == 2 * len(PROMPTS)


def test_a_pair_of_two_vocabularies_is_refused(tmp_path: Path) -> None:
    models = _tiny_models(tmp_path)
    other = tiny.encoder_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(models.pairs[0].tuned.info.source.path)
    folder = save(tmp_path / "other", model, other)
    pair = _pair(models.pairs[0].tuned.info.source.path, folder)
    mixed = load_models(models.infos.base.source, pairs=[pair])
    with pytest.raises(UserError, match="have different vocabularies; give a pair with one vocabulary"):
        plan_guides(mixed.infos, SearchConfig(token_guidance="implicit"))
