"""What the user can mend is said in one line: what was given, what was expected, what to do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    FalconConfig,
    FalconMambaConfig,
    GPT2ForSequenceClassification,
    LlamaConfig,
    MambaConfig,
    MambaForCausalLM,
    PegasusConfig,
    PretrainedConfig,
    Qwen3NextConfig,
)

from ivg import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig, generate
from ivg.config import DatasetConfig, DecodeConfig, check_guidance
from ivg.config.yaml_file import config_from_dict, read_yaml
from ivg.decoding.engine import NumericalError
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.lockstep.model_runner import ModelRunner
from ivg.errors import UserError
from ivg.models.architectures import check_rows_can_move
from ivg.models.inspection import inspect_model
from ivg.models.plan import inspect_models, plan_guides
from ivg.models.prompts import check_row, encode_prompt, identities, resolve_template
from ivg.run.tasks import make_tasks
from tests.engines.lockstep import tiny
from tests.engines.lockstep.tiny import EOS, V
from tests.tiny import tokenizer as letters

A = ModelConfig(path="a")
PAIR = PairConfig(tuned=A, untuned=A)


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


CONFIGS: list[tuple[Callable[[], object], str]] = [
    (lambda: ModelConfig(path=""), "model path is empty: give a folder"),
    (
        lambda: ModelConfig(path="a", device="cpu", device_map="auto"),
        "a: device and device_map exclude each other",
    ),
    (lambda: ModelConfig(path="a", template="Q: "), "a: template 'Q: ' has no '{prompt}'; give 'chat'"),
    (lambda: PairConfig(tuned=A, untuned=A, beta=-1), "beta is -1; give a finite number >= 0"),
    (lambda: PairConfig(tuned=A, untuned=A, beta=math.nan), "beta is nan"),
    (lambda: PairConfig(tuned=A, untuned=A, chunk_weight=math.inf), "chunk_weight is inf; give a finite"),
    (lambda: ValueConfig(model=A, beta=math.inf), "beta is inf"),
    (lambda: ValueConfig(model=A, weight=math.nan), "weight is nan; give a finite number"),
    (lambda: SearchConfig(num_beams=0), "num_beams is 0; give an integer >= 1"),
    (lambda: SearchConfig(num_successors=-1), "num_successors is -1; give an integer >= 1"),
    (lambda: SearchConfig(chunk_length=0), "chunk_length is 0; give an integer >= 1"),
    (
        lambda: SearchConfig(num_beams=2),
        "num_beams x num_successors is 2; set chunk_guidance, or num_samples",
    ),
    (lambda: SamplingConfig(max_new_tokens=0), "max_new_tokens is 0; give an integer >= 1"),
    (lambda: SamplingConfig(temperature=-0.1), "temperature is -0.1; give a finite number >= 0"),
    (lambda: SamplingConfig(temperature=math.nan), "temperature is nan"),
    (lambda: SamplingConfig(top_k=-1), "top_k is -1; give an integer >= 0"),
    (lambda: SamplingConfig(top_p=0), "top_p is 0; give a number above 0, at most 1"),
    (lambda: SamplingConfig(top_p=1.01), "top_p is 1.01"),
    (lambda: SamplingConfig(stop=("a", "")), "stop holds an empty string"),
    (lambda: SamplingConfig(stop="ab"), "stop is one string, 'ab'; give a tuple of strings"),
    (lambda: SamplingConfig(num_samples=0), "num_samples is 0; give an integer >= 1"),
    (lambda: SamplingConfig(num_samples=2, temperature=0), "greedy: num_samples 2 would repeat one response"),
    (lambda: DecodeConfig(base=A, max_batch_rows=0), "max_batch_rows is 0, but one prompt needs"),
    (lambda: DecodeConfig(base=A, block_size=0), "block_size is 0; give an integer >= 1"),
    (lambda: DecodeConfig(base=A, limit=0), "limit is 0; give an integer >= 1"),
    (lambda: DecodeConfig(base=A, input="x", dataset=DatasetConfig(name="d")), "input and dataset exclude"),
]


@pytest.mark.parametrize(("build", "message"), CONFIGS, ids=[m[:30] for _, m in CONFIGS])
def test_values_out_of_range(build: Callable[[], object], message: str) -> None:
    refused(build, message)


@pytest.mark.parametrize(
    ("search", "sampling", "message"),
    [
        ({"token_guidance": "implicit"}, {}, "token_guidance implicit needs a pair: give tuned and untuned"),
        ({"token_guidance": "explicit"}, {}, "token_guidance explicit needs a value model: give value"),
        ({"chunk_guidance": "implicit"}, {}, "chunk_guidance implicit needs a pair"),
        ({"chunk_guidance": "explicit"}, {}, "chunk_guidance explicit needs a value model"),
    ],
)
def test_guidance_without_its_model(search: dict, sampling: dict, message: str) -> None:
    refused(lambda: check_guidance(SearchConfig(**search), SamplingConfig(**sampling), [], []), message)


def test_contradictory_search_and_sampling() -> None:
    search = SearchConfig(chunk_guidance="implicit", num_beams=2, num_successors=2)
    refused(
        lambda: check_guidance(search, SamplingConfig(temperature=0), [PAIR], []),
        "temperature 0 is greedy: num_beams x num_successors = 4 would repeat one hypothesis; set both to 1",
    )
    refused(
        lambda: check_guidance(search, SamplingConfig(num_samples=3), [PAIR], []),
        "num_samples 3 draws independent responses; with chunk guidance use return_beams",
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"base": "a", "serch": {}}, "unknown key 'serch'; did you mean 'search'?"),
        ({"base": {"pth": "a"}}, "model: unknown key 'pth'; did you mean 'path'?"),
        ({"base": "a", "search": {"beams": 2}}, "search: unknown key 'beams'; did you mean 'num_beams'?"),
        (
            {"base": "a", "values": [{"path": "v", "weihgt": 1}]},
            "values: unknown key 'weihgt'; did you mean 'weight'",
        ),
        ({"base": "a", "pairs": [{"tuned": "t"}]}, "pairs.untuned is missing; give it"),
        ({"base": "a", "values": {"path": "v"}}, "values is {'path': 'v'}; give a list"),
        ({"base": "a", "pairs": "t"}, "pairs is 't'; give a list"),
        ({"base": "a", "sampling": {"stop": 3}}, "sampling: stop is 3; give a list"),
        ({"base": "a", "search": {"num_beams": "2"}}, "search.num_beams is '2'; give an integer"),
        ({"base": "a", "sampling": {"temperature": -1}}, "temperature is -1.0; give a finite number >= 0"),
        ({}, "base is missing; give it"),
    ],
)
def test_bad_configuration(data: dict[str, Any], message: str) -> None:
    refused(lambda: config_from_dict(data), message)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert config_from_dict({"base": "a", "sampling": {"stop": "ab"}}).sampling.stop == ("ab",)


@pytest.mark.parametrize(("text", "message"), [("- a\n", "expected a mapping"), ("a: [", "not valid YAML")])
def test_unreadable_yaml(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(str(file))
    refused(
        lambda: read_yaml(str(tmp_path / "none.yaml")), "No such file or directory; give a readable YAML file"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "line 3: expected a JSON object with a prompt, got a str"),
        ({"text": "x"}, "expected one of prompt, messages, instruction; found text"),
        ({"prompt": "x", "instruction": "y"}, "found prompt and instruction"),
        ({}, "found no fields"),
        ({"prompt": " "}, "prompt must be a non-empty string, got ' '"),
        ({"prompt": 3}, "prompt must be a non-empty string, got 3"),
        ({"messages": []}, "messages must be a list of objects with 'role' and 'content' strings"),
        ({"messages": [{"role": "user"}]}, "messages must be a list"),
        ({"prompt": "x", "id": 1.5}, "id must be a string or an integer, got 1.5"),
    ],
)
def test_bad_row(row: object, message: str) -> None:
    refused(lambda: check_row(row, "line 3"), message)


def test_prompts_that_cannot_be_told_apart_or_worded() -> None:
    refused(
        lambda: identities([{"prompt": "x", "id": 1}, {"prompt": "y", "id": "1"}]),
        "id '1' occurs more than once; ids must be unique",
    )
    refused(lambda: resolve_template(tiny.tokenizer(), "chat"), "has no chat template; give a format string")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    refused(
        lambda: encode_prompt(tiny.tokenizer(), {"messages": turns}, "{prompt}"),
        "a conversation of 2 messages needs a chat template",
    )


def saved(folder: Path, model: Any, tok: Any = None) -> ModelConfig:
    model.save_pretrained(folder)
    (tok or tiny.tokenizer()).save_pretrained(folder)
    return ModelConfig(path=str(folder))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    refused(lambda: inspect_model(ModelConfig(path=str(tmp_path)), "base"), "the folder has no config.json")
    missing = ModelConfig(path=str(tmp_path / "none"))
    refused(lambda: inspect_model(missing, "value", number=2), f"value 2 ({missing.path}): no such folder")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"base .* not a model that can be read"):
        inspect_model(ModelConfig(path=str(broken)), "base")
    bare = tmp_path / "bare"
    tiny.config().save_pretrained(bare)
    with pytest.raises(UserError, match="the folder has no tokenizer; save"):
        inspect_model(ModelConfig(path=str(bare)), "base")
    (bare / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        inspect_model(ModelConfig(path=str(bare)), "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match=r"base_model_name_or_path in its adapter_config.json is null"):
        inspect_model(ModelConfig(path=str(adapter)), "tuned")


def test_models_of_the_wrong_kind(tmp_path: Path) -> None:
    causal = saved(tmp_path / "causal", tiny.causal(0))
    scalar = saved(tmp_path / "scalar", tiny.value(0, 1))
    refused(
        lambda: inspect_model(scalar, "base"), "GPT2ForTokenClassification; expected a causal language model"
    )
    refused(
        lambda: inspect_model(causal, "value"), "GPT2LMHeadModel; expected a token classifier (value head)"
    )
    infos = inspect_models(causal, values=[ValueConfig(model=scalar)])
    refused(
        lambda: plan_guides(infos, SearchConfig(token_guidance="explicit")),
        "explicit token guidance needs a vocabulary head, this is a scalar head",
    )


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    causal = saved(tmp_path / "causal", tiny.causal(0))
    short = saved(tmp_path / "short", tiny.value(0, V - 1))
    two = saved(tmp_path / "two", GPT2ForSequenceClassification(tiny.config(num_labels=2)))
    search = SearchConfig(chunk_guidance="explicit")
    infos = inspect_models(causal, values=[ValueConfig(model=short)])
    refused(
        lambda: plan_guides(infos, search),
        f"its vocabulary head has {V - 1} outputs, but its tokenizer has {V}",
    )
    infos = inspect_models(causal, values=[ValueConfig(model=two)])
    refused(lambda: plan_guides(infos, search), "a reward model needs one output, this classifier has 2")


def test_vocabularies_that_differ(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny.causal(0))
    reordered = letters([*reversed(tiny.TOKENS)])
    other = saved(tmp_path / "other", tiny.causal(1), reordered)
    eft = SearchConfig(token_guidance="implicit")
    infos = inspect_models(base, pairs=[PairConfig(tuned=other, untuned=other)])
    # ten strings reversed: all are shared, none keeps its id; EOS and PAD do
    refused(
        lambda: plan_guides(infos, eft), "12 of the base's 12 token strings are shared, 2 under the same id"
    )
    infos = inspect_models(base, pairs=[PairConfig(tuned=base, untuned=other)])
    with pytest.raises(UserError, match=r"different vocabular|its vocabulary differs"):
        plan_guides(infos, eft)
    swapped = tiny.tokenizer()
    spec = json.loads(swapped.backend_tokenizer.to_str())
    vocab = spec["model"]["vocab"]
    vocab["<eos>"], vocab["<pad>"] = vocab["<pad>"], vocab["<eos>"]
    for token in spec["added_tokens"]:
        token["id"] = vocab[token["content"]]
    special = type(swapped)(
        tokenizer_object=type(swapped.backend_tokenizer).from_str(json.dumps(spec)),
        eos_token="<eos>",
        pad_token="<pad>",
    )
    tuned = saved(tmp_path / "special", tiny.causal(2), special)
    infos = inspect_models(base, pairs=[PairConfig(tuned=tuned, untuned=tuned)])
    refused(lambda: plan_guides(infos, eft), "the base's EOS '<eos>' has another id or is missing there")


BASE = tiny.loaded(tiny.causal(0), "base", "base")


def test_prompts_that_do_not_fit() -> None:
    long = "ab" * 32
    refused(
        lambda: generate(["a", long], tiny.together(BASE), sampling=SamplingConfig(max_new_tokens=5)),
        "prompt 2 of 2: base: prompt of 64 tokens + max_new_tokens 5 exceeds its context of 64; shorten it",
    )
    tasks, bad = make_tasks(
        [{"prompt": long}, {"prompt": long[:-2]}],
        [BASE.info],
        SamplingConfig(max_new_tokens=5),
        on_overflow="stop",
    )
    assert [b.index for b in bad] == [0]
    assert [(t.max_tokens, t.limited_by) for t in tasks] == [(2, "context")]


def test_rows_that_do_not_fit_the_batch() -> None:
    search = SearchConfig(chunk_guidance="explicit", num_beams=3, num_successors=3)
    models = tiny.together(BASE, values=(tiny.scorer(tiny.loaded(tiny.value(5, 1), "value", "v")),))
    refused(
        lambda: generate(["a"], models, search=search, max_batch_rows=8),
        "max_batch_rows is 8, but one prompt needs num_beams x num_successors = 9 rows; raise it",
    )


TAKING_PART = [
    (token, chunk, broken)
    for token in ("none", "implicit")
    for chunk in ("none", "implicit", "explicit")
    for broken in ("base", "tuned", "untuned", "value")
    if broken == "base" or (chunk == "explicit" if broken == "value" else "implicit" in (token, chunk))
]


@pytest.mark.parametrize(("token", "chunk", "broken"), TAKING_PART)
def test_nan_names_the_model_and_the_prompt(token: str, chunk: str, broken: str) -> None:
    """The letter c, which both prompts hold, turns one model's outputs into NaN."""
    names = ("base", "tuned", "untuned")
    causal = {name: tiny.loaded(tiny.causal(i), "base", name) for i, name in enumerate(names)}
    value = tiny.loaded(tiny.value(5, 1), "value", "value")
    with torch.no_grad():
        ({**causal, "value": value})[broken].module.transformer.wte.weight[2] = math.nan
    models = tiny.together(
        causal["base"], (tiny.pair(causal["tuned"], causal["untuned"]),), (tiny.scorer(value),)
    )
    search = SearchConfig(
        token_guidance=token, chunk_guidance=chunk, num_successors=1 if chunk == "none" else 2, chunk_length=2
    )
    with pytest.raises(
        NumericalError, match=rf"^{broken} returned NaN or infinite numbers on prompt (first|second)$"
    ):
        generate(
            [{"prompt": "ca", "id": "first"}, {"prompt": "cb", "id": "second"}],
            models,
            search=search,
            sampling=SamplingConfig(max_new_tokens=4),
        )


def test_nan_names_the_right_prompt() -> None:
    """A value model that breaks on the letter c: tied embeddings of the base stay sound."""
    value = tiny.loaded(tiny.value(5, 1), "value", "value")
    base = tiny.loaded(tiny.causal(0), "base", "base", eos=[EOS])
    with torch.no_grad():
        value.module.transformer.wte.weight[2] = math.nan
    search = SearchConfig(chunk_guidance="explicit", chunk_length=1)
    prompts = [{"prompt": p, "id": f"<{p}>"} for p in ("aaa", "bab", "dca", "e")]
    with pytest.raises(NumericalError, match=r"^value returned NaN or infinite numbers on prompt <dca>$"):
        generate(
            prompts,
            tiny.together(base, values=(tiny.scorer(value),)),
            search=search,
            sampling=SamplingConfig(max_new_tokens=1, seed=2),
        )


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("token", "chunk", "num_labels"),
    [("explicit", "none", V), ("none", "explicit", V), ("none", "explicit", 1)],
)
def test_a_broken_value_head_is_named(token: str, chunk: str, num_labels: int, wrong: float) -> None:
    """The head comes after the hidden states, which stay sound."""
    base = tiny.loaded(tiny.causal(0), "base", "base")
    value = tiny.loaded(tiny.value(5, num_labels), "value", "value")
    value.head.bias.data[:] = wrong
    models = tiny.together(base, values=(tiny.scorer(value),))
    search = SearchConfig(
        token_guidance=token, chunk_guidance=chunk, num_successors=1 if chunk == "none" else 2, chunk_length=3
    )
    sampling = SamplingConfig(max_new_tokens=6)
    engine = LockstepEngine(models, search, sampling, max_batch_rows=8)
    tasks, _ = make_tasks([{"prompt": "ca", "id": "first"}], engine.infos, sampling)
    with pytest.raises(NumericalError, match=r"^value returned NaN or infinite numbers on prompt first$"):
        list(engine.run(tasks))


def test_tokens_that_the_pair_rules_out_are_never_sampled() -> None:
    """Minus infinity in one or both of a pair's logits is a statement, not an error."""
    base, tuned, untuned = (tiny.loaded(tiny.causal(i), "base", f"m{i}") for i in range(3))

    def ruling_out(model: Any, *ids: int) -> None:
        head = torch.nn.Linear(16, V).double()
        head.weight.data = model.module.lm_head.weight.detach().clone()
        head.bias.data.zero_()
        head.bias.data[list(ids)] = -math.inf
        model.module.lm_head = head.requires_grad_(False)

    ruling_out(tuned, 3, 4)
    ruling_out(untuned, 4)
    models = tiny.together(base, (tiny.pair(tuned, untuned),))
    sampling = SamplingConfig(max_new_tokens=20, num_samples=20, temperature=2.0)
    found = generate(["a", "b"], models, search=SearchConfig(token_guidance="implicit"), sampling=sampling)
    sampled = {token for response in found for token in response.token_ids}
    assert 3 not in sampled
    assert 4 in sampled  # ruled out by both: left to the base
    plain = generate(["a", "b"], tiny.together(base), sampling=sampling)
    zero = tiny.together(base, (tiny.pair(tuned, untuned, beta=0.0),))
    again = generate(["a", "b"], zero, search=SearchConfig(token_guidance="implicit"), sampling=sampling)
    assert [r.token_ids for r in again] == [r.token_ids for r in plain]


STATEFUL = [
    MambaConfig(),
    FalconMambaConfig(),
    Qwen3NextConfig(num_hidden_layers=2, layer_types=["linear_attention", "linear_attention"]),
]


@pytest.mark.parametrize("config", STATEFUL, ids=lambda c: c.model_type)
def test_recurrent_architectures_without_attention_are_refused(config: PretrainedConfig) -> None:
    message = f"base: {config.model_type} remembers in a way of its own"
    refused(lambda: check_rows_can_move(config, "base", is_causal=True), message)
    refused(lambda: check_rows_can_move(config, "base", is_causal=False), message)


def test_architectures_without_positions_are_refused() -> None:
    refused(
        lambda: check_rows_can_move(PegasusConfig(), "base", is_causal=True),
        "base: pegasus takes no position_ids, so prompts of different lengths cannot share a batch",
    )


@pytest.mark.parametrize("config", [LlamaConfig(), FalconConfig(), tiny.config()], ids=lambda c: c.model_type)
@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_architectures_pass(config: PretrainedConfig, is_causal: bool) -> None:
    check_rows_can_move(config, "base", is_causal=is_causal)


def test_a_recurrent_folder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    MambaConfig(vocab_size=V, architectures=["MambaForCausalLM"]).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    refused(
        lambda: inspect_model(ModelConfig(path=str(tmp_path)), "base"), "mamba remembers in a way of its own"
    )


@pytest.mark.parametrize("is_causal", [True, False])
def test_architectures_that_read_in_both_directions_are_refused(is_causal: bool) -> None:
    refused(
        lambda: check_rows_can_move(BertConfig(), "value", is_causal=is_causal),
        "value: bert reads in both directions, so a prefix's outputs change as it grows",
    )
    check_rows_can_move(BertConfig(is_decoder=True), "base", is_causal=True)


def test_a_model_that_fills_no_cache_is_refused_when_it_is_first_run() -> None:
    """The second net, for what no configuration tells."""
    model = MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4))
    runner = ModelRunner(model.eval(), name="base", has_logits=True, num_ids=V, max_length=64)
    message = "base: its architecture remembers in a way of its own"
    with torch.inference_mode():
        refused(lambda: runner.prefill([[1, 2, 3], [4]]), message)
