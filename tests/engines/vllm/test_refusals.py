"""What vLLM cannot do is said before anything is loaded; this needs no vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedModel

from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.engines.vllm.description import Description, describe
from ivg.engines.vllm.refusals import find_refusals
from ivg.models.plan import inspect_models, plan_guides
from tests import tiny
from tests.models import tiny as two_vocabularies

# PEFT tells of what is refused here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]
EFT = SearchConfig(token_guidance="implicit")
DRAFT = {"model": "tuned", "num_speculative_tokens": 3}
RANKED = SearchConfig(chunk_guidance="implicit", num_successors=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned", "untuned")):
        tiny.save(folder / name, tiny.causal(seed))
    tiny.save(folder / "windowed", tiny.mistral(3))
    tiny.save(folder / "llama", tiny.llama(4))
    tiny.save(folder / "hybrid", tiny.hybrid(8))
    for name, labels in (("scalar", 1), ("vocabulary", len(tiny.LETTERS) + 2)):
        model: PreTrainedModel = tiny.value(5, num_labels=labels)
        model.config.architectures = ["GPT2ForTokenClassification"]
        tiny.save(folder / name, model)
    classifier = two_vocabularies.GPT2ForSequenceClassification(
        tiny.gpt2_config(len(tiny.LETTERS) + 2, num_labels=1)
    )
    tiny.save(folder / "classifier", classifier)
    two_vocabularies.guide(folder / "other", 6)
    for target in ("lm_head", "c_attn"):
        lora = LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM", fan_in_fan_out=True)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "untuned"), lora)
        adapted.save_pretrained(folder / f"lora_{target}")
        tiny.tokenizer().save_pretrained(folder / f"lora_{target}")
    for name, end in (("closes_by_pad", tiny.PAD), ("no_end", None)):
        tokenizer = tiny.tokenizer()
        tokenizer.eos_token = end
        tiny.save(folder / name, tiny.causal(7), tokenizer)
    assert isinstance(tiny.causal(0), GPT2LMHeadModel)
    return folder


def refusals(
    folder: Path,
    *,
    search: SearchConfig = EFT,
    base: dict | None = None,
    tuned: str = "tuned",
    guide: dict | None = None,
    values: tuple[str, ...] = (),
    temperature: float = 1.0,
    keep_trace: bool = False,
    ranks: float | None = None,
    engine_args: dict | None = None,
) -> list[str]:
    def source(name: str, options: dict | None) -> ModelConfig:
        return ModelConfig(path=str(folder / name), **(options or {}))

    has_twin = tuned in ("tuned", "closes_by_pad") or tuned.startswith("lora")
    untuned = "untuned" if has_twin else tuned
    pair = PairConfig(tuned=source(tuned, guide), untuned=source(untuned, guide), chunk_weight=ranks)
    configs = [ValueConfig(model=source(name, guide), weight=1.0) for name in values]
    infos = inspect_models(source("base", base), [pair], configs)
    found = find_refusals(
        infos.base,
        plan_guides(infos, search),
        SamplingConfig(temperature=temperature),
        keep_trace=keep_trace,
        engine_args=engine_args,
    )
    assert all(item.reason and item.instead for item in found)
    return [item.asked for item in found]


def test_what_it_can_do_is_not_refused(folder: Path) -> None:
    assert refusals(folder) == []
    assert refusals(folder, search=RANKED, values=("scalar",), keep_trace=True, temperature=0.01) == []
    assert refusals(folder, tuned="llama", engine_args={"tensor_parallel_size": 2}) == []
    assert refusals(folder, engine_args={"speculative_config": DRAFT}) == []
    assert refusals(folder, tuned="lora_c_attn") == []


def test_a_value_in_an_engine_of_its_own_may_be_what_one_inside_may_not(folder: Path) -> None:
    search = SearchConfig(token_guidance="implicit", chunk_guidance="explicit", num_beams=2)
    options: dict = {"search": search, "values": ("classifier",), "keep_trace": False}
    assert any("classifier" in asked for asked in refusals(folder, **options))
    assert refusals(folder, **options, engine_args={"value_engine": {}}) == []


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"base": {"dtype": "float64"}, "guide": {"dtype": "float64"}}, "dtype float64"),
        ({"base": {"dtype": "float32"}}, "dtype auto"),
        ({"base": {"device_map": "auto"}}, "device"),
        ({"base": {"attn_implementation": "eager"}}, "attn_implementation"),
        ({"guide": {"template": "Q: {prompt}"}}, "a template of its own"),
        ({"tuned": "windowed"}, "sliding-window attention"),
        ({"tuned": "hybrid"}, "recurrent states (lfm2)"),
        ({"tuned": "other", "search": RANKED}, "other"),
        (
            {"search": SearchConfig(chunk_guidance="explicit", num_beams=2), "values": ("classifier",)},
            "classifier",
        ),
        ({"search": RANKED, "values": ("vocabulary",)}, "chunk scores of both"),
        ({"temperature": 0.005}, "temperature 0.005"),
        ({"keep_trace": True}, "trace with token guidance"),
        ({"engine_args": {"tensor_parallel_size": 3}}, "tensor_parallel_size 3"),
        ({"engine_args": {"tensor_parallel_size": "2"}}, "vllm.tensor_parallel_size '2'"),
        ({"engine_args": {"pipeline_parallel_size": 2}}, "vllm.pipeline_parallel_size"),
        ({"engine_args": {"max_model_len": 65}}, "vllm.max_model_len 65"),
        ({"engine_args": {"max_model_len": "1k"}}, "vllm.max_model_len '1k'"),
        ({"engine_args": {"dtype": "float16"}}, "vllm.dtype"),
        ({"engine_args": {"hf_overrides": {}}}, "vllm.hf_overrides"),
        ({"engine_args": {"speculative_config": DRAFT | {"method": "ngram"}}}, "vllm.speculative_config {"),
        ({"engine_args": {"speculative_config": "tuned"}}, "vllm.speculative_config 'tuned'"),
        ({"engine_args": {"speculative_config": DRAFT | {"num_speculative_tokens": 0}}}, "'num_speculat"),
        (
            {"engine_args": {"speculative_config": DRAFT | {"model": None}}},
            "vllm.speculative_config {'model'",
        ),
        ({"search": RANKED, "engine_args": {"speculative_config": DRAFT}}, "vllm.speculative_config"),
        ({"engine_args": {"value_engine": 0.2}}, "vllm.value_engine 0.2"),
        ({"engine_args": {"value_engine": {"dtype": "float16"}}}, "vllm.value_engine.dtype"),
        ({"engine_args": {"value_engine": {}}}, "vllm.value_engine"),  # no value takes part
        ({"tuned": "closes_by_pad", "search": RANKED}, "which closes responses by id"),
        ({"tuned": "no_end", "search": RANKED}, "no_end"),
        ({"tuned": "lora_lm_head"}, "an adapter on tied embeddings"),
    ],
)
def test_what_it_cannot_do_is(folder: Path, options: dict, asked: str) -> None:
    assert any(asked in found for found in refusals(folder, **options))


def test_a_description_survives_json(folder: Path) -> None:
    import json

    source = ModelConfig(path=str(folder / "base"))
    pair = PairConfig(tuned=ModelConfig(path=str(folder / "tuned")), untuned=source, beta=0.5)
    infos = inspect_models(
        source, [pair], [ValueConfig(model=ModelConfig(path=str(folder / "scalar")), weight=2.0)]
    )
    description = describe(
        infos.base, plan_guides(infos, SearchConfig(token_guidance="implicit", chunk_guidance="explicit"))
    )
    assert Description.from_dict(json.loads(json.dumps(description.to_dict()))) == description
    assert [guide.is_pair for guide in description.guides] == [True, False]
    assert [guide.is_scalar for guide in description.guides] == [False, True]
    assert description.value_id == infos.base.num_outputs
