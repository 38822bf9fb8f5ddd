"""Guides that read text: every candidate's value equals a plain recomputation over prompt and response."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
)

import ivg
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.engine import NumericalError, in_order
from ivg.decoding.sequences import Finished, Hypothesis
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.response_encoding import response_text
from ivg.models.loading import Models, load_models
from ivg.models.prompts import as_rows
from ivg.run.tasks import make_tasks
from tests.models import tiny
from tests.tiny import save as tiny_save

PROMPTS = ["ab", "cafe bad.", "f", "dead ace"]
SEARCH = {"num_beams": 2, "num_successors": 2, "chunk_length": 3}
SAMPLING = SamplingConfig(max_new_tokens=11, seed=3)
Score = Callable[[str, str, bool], float]


def _run(models: Models, search: SearchConfig, sampling: SamplingConfig = SAMPLING) -> list[Finished]:
    engine = LockstepEngine(models, search, sampling, max_batch_rows=8, keep_trace=True)
    tasks, bad = make_tasks(as_rows(PROMPTS), engine.infos, sampling)
    assert not bad
    return list(in_order(tasks, engine.run(tasks)))


def _check_values(finished: Sequence[Finished], score: Score) -> int:
    """Every candidate of every boundary; returns how many had ended with an EOS."""
    base = tiny.base_tokenizer()
    num_ended = 0
    for task in finished:
        for boundary in task.trace:
            for candidate in boundary.candidates:
                is_ended = tiny.BASE_EOS in candidate.ids
                num_ended += is_ended
                text = base.decode(list(candidate.ids), skip_special_tokens=True)
                expected = score(task.task.record["prompt"], text, is_ended)
                assert candidate.value == pytest.approx(expected, abs=1e-8)
    return num_ended


def _ids(folder: str, prompt: str, text: str, is_ended: bool) -> tuple[list[int], int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = [0, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]  # one BOS
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*before, *after, *([tokenizer.eos_token_id] if is_ended else [])], len(before)


def _logp(folder: str, prompt: str, text: str, is_ended: bool) -> tuple[float, int]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, start = _ids(folder, prompt, text, is_ended)
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logps[i - 1, ids[i]]) for i in range(start, len(ids))), max(1, len(ids) - start)


@pytest.fixture(autouse=True)
def _fast_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reload no model: the slow references ask for the same few thousands of times."""
    for auto in (AutoModelForCausalLM, AutoModelForTokenClassification, AutoModelForSequenceClassification):
        monkeypatch.setattr(auto, "from_pretrained", _cached(auto.from_pretrained))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", _cached(AutoTokenizer.from_pretrained))


def _cached(load: Callable[..., object]) -> Callable[..., object]:
    kept: dict[tuple[str, ...], object] = {}

    def cached(path: str, **kwargs: object) -> object:
        key = (path, *sorted(map(str, kwargs.items())))
        if key not in kept:
            kept[key] = loaded = load(path, **kwargs)
            if isinstance(loaded, torch.nn.Module):  # one of the references
                loaded.requires_grad_(False)
        return kept[key]

    return cached


@pytest.mark.parametrize("average", [False, True])
def test_pair_values_equal_recomputation(tmp_path: Path, average: bool) -> None:
    tuned, untuned = tiny.guide(tmp_path / "tuned", 1), tiny.guide(tmp_path / "untuned", 2)
    pair = PairConfig(tuned=ModelConfig(path=tuned), untuned=ModelConfig(path=untuned), average=average)
    models = load_models(tiny.base(tmp_path / "base"), pairs=[pair])
    finished = _run(models, SearchConfig(chunk_guidance="implicit", **SEARCH))

    def score(prompt: str, text: str, is_ended: bool) -> float:
        (t, n), (u, _) = (_logp(folder, prompt, text, is_ended) for folder in (tuned, untuned))
        return (t - u) / n if average else t - u

    assert _check_values(finished, score) > 3


@pytest.mark.parametrize("kind", ["scalar", "vocabulary", "classifier"])
def test_left_to_right_values_equal_recomputation(tmp_path: Path, kind: str) -> None:
    """Heads on decoders, also a stock sequence classifier, which looks for the last token itself."""
    folder = str(tmp_path / "value")
    if kind == "classifier":
        tiny.decoder_classifier(tmp_path / "value", 3)
    else:
        num_labels = 1 if kind == "scalar" else len(tiny.pair_tokenizer())
        tiny.value(tmp_path / "value", 3, num_labels=num_labels)
    values = [ValueConfig(model=ModelConfig(path=folder), weight=0.5)]
    models = load_models(tiny.base(tmp_path / "base"), values=values)
    finished = _run(models, SearchConfig(chunk_guidance="explicit", **SEARCH))

    def score(prompt: str, text: str, is_ended: bool) -> float:
        # A classifier reads the conversation as its template writes it, without the generation prompt.
        ids, _ = _ids(folder, prompt, text, is_ended)
        inputs = torch.tensor([ids])
        if kind == "classifier":
            model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            return 0.5 * float(model(inputs).logits[0, 0])
        logits = AutoModelForTokenClassification.from_pretrained(folder).eval()(inputs).logits[0]
        return 0.5 * float(logits[-1, 0] if kind == "scalar" else logits[-2, ids[-1]])

    assert _check_values(finished, score) > 3


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_encoders_read_the_whole_text(tmp_path: Path, kind: str) -> None:
    folder = tiny.encoder_classifier(tmp_path / "value", 4, kind)
    values = [ValueConfig(model=ModelConfig(path=folder, template="a {prompt}"))]
    models = load_models(tiny.base(tmp_path / "base"), values=values)
    finished = _run(models, SearchConfig(chunk_guidance="explicit", **SEARCH))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def score(prompt: str, text: str, is_ended: bool) -> float:
        characters = [4 + tiny.LETTERS.index(c) for c in f"a {prompt}{text}"]
        return float(model(torch.tensor([[1, *characters, 2]])).logits[0, 0])

    assert _check_values(finished, score) > 3


def test_text_and_ids_agree_on_equal_vocabularies(tmp_path: Path) -> None:
    """The same scalar head as a token classifier (by ids) and as a sequence classifier (through text)."""
    config = tiny.gpt2_config(
        len(tiny.LETTERS) + 2, eos_token_id=tiny.BASE_EOS, pad_token_id=tiny.BASE_EOS + 1, num_labels=1
    )
    by_ids = tiny.scaled(GPT2ForTokenClassification(config), 5)
    through_text = tiny.scaled(GPT2ForSequenceClassification(config), 6)
    through_text.transformer.load_state_dict(by_ids.transformer.state_dict())
    through_text.score.weight.copy_(by_ids.classifier.weight)
    by_ids.classifier.bias.zero_()
    base = tiny.base(tmp_path / "base", emits_pad=False)
    search = SearchConfig(chunk_guidance="explicit", **SEARCH)
    responses = []
    for name, model in (("ids", by_ids), ("text", through_text)):
        folder = tiny_save(tmp_path / name, model, tiny.base_tokenizer())
        models = load_models(base, values=[ValueConfig(model=ModelConfig(path=folder))])
        responses.append(ivg.generate(PROMPTS, models, search=search, sampling=SAMPLING))
    for one, other in zip(*responses, strict=True):
        assert one.token_ids == other.token_ids
        assert one.value == pytest.approx(other.value, abs=1e-9)


def test_several_guides_add_up(tmp_path: Path) -> None:
    """A weighted sum of a pair and a classifier, both through text, with continuous batching."""
    tuned, untuned = tiny.guide(tmp_path / "tuned", 1), tiny.guide(tmp_path / "untuned", 2)
    classifier = tiny.decoder_classifier(tmp_path / "value", 3)
    pair = PairConfig(
        tuned=ModelConfig(path=tuned, template="b{prompt}"),
        untuned=ModelConfig(path=untuned),
        chunk_weight=0.3,
    )
    value = ValueConfig(model=ModelConfig(path=classifier), weight=-2.0)
    models = load_models(tiny.base(tmp_path / "base"), pairs=[pair], values=[value])
    finished = _run(models, SearchConfig(chunk_guidance="explicit", **SEARCH))
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()

    def score(prompt: str, text: str, is_ended: bool) -> float:
        ratio = _logp(tuned, "b" + prompt, text, is_ended)[0] - _logp(untuned, prompt, text, is_ended)[0]
        ids, _ = _ids(classifier, prompt, text, is_ended)
        return 0.3 * ratio - 2.0 * float(model(torch.tensor([ids])).logits[0, 0])

    assert _check_values(finished, score) > 3


def test_a_response_beyond_the_context_is_scored_up_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.encoder_classifier(tmp_path / "encoder", 4, "bert")
    value = tiny.value(tmp_path / "value", 3, num_labels=1)
    for path in (folder, value):  # the tokenizer's own limit is the shorter one
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.model_max_length = 8
        tokenizer.save_pretrained(path)
    values = [ValueConfig(model=ModelConfig(path=path)) for path in (folder, value)]
    models = load_models(tiny.base(tmp_path / "base"), values=values)
    with caplog.at_level(logging.WARNING):
        finished = _run(models, SearchConfig(chunk_guidance="explicit", **SEARCH))
    assert len(finished) == len(PROMPTS)
    assert sum("it is scored up to there" in message for message in caplog.messages) == 1


def test_a_broken_guide_is_named(tmp_path: Path) -> None:
    folder = tiny.value(tmp_path / "value", 3, num_labels=1)
    models = load_models(tiny.base(tmp_path / "base"), values=[ValueConfig(model=ModelConfig(path=folder))])
    models.values[0].model.head.bias.fill_(float("nan"))
    with pytest.raises(NumericalError, match=r"value \(.*value\) returned NaN or infinite numbers on prompt"):
        _run(models, SearchConfig(chunk_guidance="explicit", **SEARCH))


def test_half_characters_are_not_read(tmp_path: Path) -> None:
    models = load_models(tiny.base(tmp_path / "base"))
    info = models.infos.base

    class HalfCharacter:
        eos_token_id = None

        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return "é\ufffd"

    half = dataclasses.replace(info, tokenizer=HalfCharacter())
    stop_checker = StopChecker(info.eos_ids, (), info.tokenizer.decode)
    assert response_text(half, Hypothesis((1, 2)), stop_checker) == ("é", (1, 2), False)
    ended = Hypothesis((0, 1, tiny.BASE_EOS), finish_reason="eos")
    assert response_text(info, ended, stop_checker) == ("ab", (0, 1), True)
