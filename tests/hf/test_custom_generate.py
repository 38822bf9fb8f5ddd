"""`model.generate(custom_generate=...)` gives what `ivg.generate` gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationMixin, LogitsProcessorList, MinLengthLogitsProcessor

import ivg
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.engine import in_order
from ivg.decoding.sequences import Task
from ivg.decoding.streaming import NewText
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.errors import UserError
from ivg.hf import Guidance, custom_generate
from ivg.hf.generate import _names
from ivg.models.loading import load_models
from tests import tiny
from tests.models import tiny as guides

PROMPTS = ["hello", "a", "what is it?"]
SEARCH = SearchConfig(
    token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=2, chunk_length=3
)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    made = {
        name: tiny.save(tmp_path / name, tiny.causal(i))
        for i, name in enumerate(["base", "tuned", "untuned"])
    }
    made["value"] = tiny.save(tmp_path / "value", tiny.value(3, num_labels=1))
    return made


def _pair(folders: dict[str, str], template: str | None = None) -> PairConfig:
    return PairConfig(
        tuned=ModelConfig(path=folders["tuned"], template=template),
        untuned=ModelConfig(path=folders["untuned"]),
    )


def _guidance(
    folders: dict[str, str], template: str | None = None, **kwargs: Any
) -> tuple[GenerationMixin, Guidance]:
    model = AutoModelForCausalLM.from_pretrained(folders["base"]).eval()
    guidance = Guidance(
        model,
        tiny.tokenizer(),
        pairs=[_pair(folders, template)],
        values=[ValueConfig(model=ModelConfig(path=folders["value"]))],
        seed=7,
        **{"search": SEARCH, **kwargs},
    )
    return model, guidance


def _inputs() -> dict[str, torch.Tensor]:
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    return dict(tokenizer(PROMPTS, padding=True, return_tensors="pt", return_token_type_ids=False))


def _expected(guidance: Guidance, sampling: SamplingConfig, names: list[str]) -> list[tuple[int, ...]]:
    engine = LockstepEngine(guidance.models, guidance.search, sampling)
    tokenizer = tiny.tokenizer()
    tasks = [
        Task(
            index=i,
            prompt_id=name,
            prompt_ids=dict.fromkeys(
                (info.name for info in engine.infos), tuple(tokenizer(prompt)["input_ids"])
            ),
            max_tokens=sampling.max_new_tokens,
        )
        for i, (name, prompt) in enumerate(zip(names, PROMPTS, strict=True))
    ]
    return [f.beams[0].ids for f in in_order(tasks, engine.run(tasks))]


def test_left_padded_batch_equals_the_engine(folders: dict[str, str]) -> None:
    model, guidance = _guidance(folders)
    inputs = _inputs()
    found = model.generate(
        **inputs,
        custom_generate=custom_generate,
        guidance=guidance,
        do_sample=True,
        temperature=0.8,
        top_k=9,
        top_p=0.9,
        max_new_tokens=12,
    )
    sampling = SamplingConfig(max_new_tokens=12, temperature=0.8, top_k=9, top_p=0.9, seed=7)
    names = _names([tuple(tiny.tokenizer()(p)["input_ids"]) for p in PROMPTS])
    expected = _expected(guidance, sampling, names)
    assert torch.equal(found[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    for row, ids in zip(found[:, inputs["input_ids"].shape[1] :].tolist(), expected, strict=True):
        assert tuple(row[: len(ids)]) == ids
        assert set(row[len(ids) :]) <= {len(tiny.LETTERS) + 1}  # PAD
    assert len(set(expected)) == len(PROMPTS)


def test_greedy_without_guidance_equals_generate(folders: dict[str, str]) -> None:
    model, guidance = _guidance(folders, search=SearchConfig())
    settings = {**_inputs(), "do_sample": False, "max_new_tokens": 10}
    plain = model.generate(**settings)
    guided = model.generate(**settings, custom_generate=custom_generate, guidance=guidance)
    assert torch.equal(plain, guided)
    kept = model.generate(
        **settings, custom_generate=custom_generate, guidance=guidance, return_dict_in_generate=True
    )
    assert torch.equal(kept.sequences, plain)


def test_own_templates_need_the_prompts(folders: dict[str, str]) -> None:
    model, guidance = _guidance(folders, template="b {prompt}")
    settings = {
        "do_sample": True,
        "max_new_tokens": 6,
        "custom_generate": custom_generate,
        "guidance": guidance,
    }
    with pytest.raises(UserError, match=r"tuned .*so it needs the prompts themselves; give prompts=\[...\]"):
        model.generate(**_inputs(), **settings)
    with pytest.raises(UserError, match="1 prompts for 3 rows of input_ids"):
        model.generate(**_inputs(), **settings, prompts=["a"])
    templated = model.generate(**_inputs(), **settings, prompts=PROMPTS)
    same = _guidance(folders, template="{prompt}")[1]
    same = model.generate(**_inputs(), **{**settings, "guidance": _rebound(same, model)}, prompts=PROMPTS)
    assert not torch.equal(templated, same)


def _rebound(guidance: Guidance, model: GenerationMixin) -> Guidance:
    base = dataclasses.replace(guidance.models.base, module=model)
    guidance.models = dataclasses.replace(guidance.models, base=base)
    return guidance


def test_another_vocabulary_scores_through_text(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(guides.base(tmp_path / "base")).eval()
    tuned, untuned = (ModelConfig(path=guides.guide(tmp_path / str(i), i)) for i in (1, 2))
    search = SearchConfig(chunk_guidance="implicit", num_beams=2, num_successors=2, chunk_length=3)
    guidance = Guidance(
        model, guides.base_tokenizer(), pairs=[PairConfig(tuned=tuned, untuned=untuned)], search=search
    )
    inputs = guides.base_tokenizer()(["cafe"], return_tensors="pt", return_token_type_ids=False)
    found = model.generate(
        **inputs,
        custom_generate=custom_generate,
        guidance=guidance,
        prompts=[{"prompt": "cafe"}],
        do_sample=True,
        max_new_tokens=9,
    )
    models = load_models(
        ModelConfig(path=str(tmp_path / "base")), pairs=[PairConfig(tuned=tuned, untuned=untuned)]
    )
    name = _names([tuple(inputs["input_ids"][0].tolist())])[0]
    (response,) = ivg.generate(
        [{"prompt": "cafe", "id": name}], models, search=search, sampling=SamplingConfig(max_new_tokens=9)
    )
    assert found[0, 4:].tolist() == list(response.token_ids)


def test_stop_strings_and_streaming_are_in_the_guidance(folders: dict[str, str]) -> None:
    pieces: list[NewText] = []
    model, guidance = _guidance(folders, stop=["e", "t"], on_text=pieces.append)
    found = model.generate(
        **_inputs(), custom_generate=custom_generate, guidance=guidance, do_sample=True, max_new_tokens=20
    )
    streamed = sorted(
        "".join(p.text for p in pieces if p.prompt_id == name) for name in {p.prompt_id for p in pieces}
    )
    tokenizer = tiny.tokenizer()
    texts = tokenizer.batch_decode(found[:, _inputs()["input_ids"].shape[1] :], skip_special_tokens=True)
    assert streamed == sorted(text.split("e")[0].split("t")[0] for text in texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "num_beams is 2, which repeats the prompts"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, which repeats the prompts"),
        ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor has no part in the guided search"),
        ({"guidance": None}, "custom_generate needs guidance="),
        ({"do_sample": False}, "temperature 0 is greedy"),
        (
            {"logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(3, 1)])},
            "MinLengthLogitsProcessor has no part",
        ),
    ],
)
def test_what_the_search_cannot_do_is_refused(
    folders: dict[str, str], settings: dict[str, Any], message: str
) -> None:
    model, guidance = _guidance(folders)
    given = {"guidance": guidance, "do_sample": True, "max_new_tokens": 5, **settings}
    with pytest.raises(UserError, match=message):
        model.generate(**_inputs(), custom_generate=custom_generate, **given)


def test_too_few_rows_are_refused(folders: dict[str, str]) -> None:
    with pytest.raises(
        UserError,
        match=r"max_batch_rows is 3, but one prompt needs .* = 4 rows",
    ):
        _guidance(folders, max_batch_rows=3)


def test_a_prompt_beyond_a_context_is_refused(folders: dict[str, str]) -> None:
    model, guidance = _guidance(folders)
    with pytest.raises(
        UserError, match=r"base: prompt 1 of 5 tokens \+ max_new_tokens 60 exceeds its context of 64"
    ):
        model.generate(
            **_inputs(), custom_generate=custom_generate, guidance=guidance, do_sample=True, max_new_tokens=60
        )
