"""The ids that training saw are those that reading sees, for six families: compared with texts by hand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ivg.config import ModelConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.sequences import Hypothesis
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.text_guides import TextGuides
from ivg.errors import UserError
from ivg.evaluation.measures.distance import encode_response
from ivg.models.chat_template import write_conversation
from ivg.models.inspection import inspect_model
from ivg.models.loading import load_models
from ivg.models.plan import inspect_models, plan_guides
from ivg.models.rendering import PROMPT_FORMAT, Renderer, write_format
from ivg.rewards import ClassifierReward, RewardConfig
from ivg.run.tasks import make_tasks
from ivg.training.encoding import EncodedPairs, apply_tokens, encode
from ivg.training.value.data import encode_pairs, encode_rewarded
from tests.models.templates import FAMILIES, PROMPT, RESPONSE, Family, ids, tokenizer
from tests.tiny import scale_up

# TRL sets the old key by default.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
PAIR = {"prompt": PROMPT, "chosen": RESPONSE, "rejected": "No."}


def _model(kind: type[PreTrainedModel], tok: PreTrainedTokenizerFast, **config: Any) -> PreTrainedModel:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    made = kind(LlamaConfig(vocab_size=len(tok), max_position_embeddings=512, **shape, **ends, **config))
    return scale_up(made).double()


def _save(folder: Path, kind: type[PreTrainedModel], tok: PreTrainedTokenizerFast, **config: Any) -> str:
    _model(kind, tok, **config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def _settings(kind: type, folder: Path, **more: Any) -> Any:
    quiet = {"report_to": [], "save_strategy": "no", "gradient_checkpointing": False}
    return kind(output_dir=str(folder), bf16=False, use_cpu=True, max_length=None, **quiet, **more)


class DPOTrainer(EncodedPairs, trl.DPOTrainer):
    """What train/dpo.py trains with, without its card."""


def _trained_on(
    trainer: type,
    settings: Any,
    kind: type[PreTrainedModel],
    row: dict[str, Any],
    tok: PreTrainedTokenizerFast,
) -> dict[str, Any]:
    """Return the first row that a real trainer of TRL's feeds."""
    rows = encode(datasets.Dataset.from_list([row]), "rows", Renderer(tok, None), settings)
    labels = {"num_labels": 1} if kind is LlamaForSequenceClassification else {}
    path = _save(Path(settings.output_dir) / "start", kind, tok, **labels)
    made = trainer(model=path, args=settings, train_dataset=rows, processing_class=tok)
    first: dict[str, Any] = made.train_dataset[0]
    return first


def _reward(family: Family, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    settings = _settings(trl.RewardConfig, folder)
    row = _trained_on(trl.RewardTrainer, settings, LlamaForSequenceClassification, PAIR, tok)
    expected = ids(tok, family.judged)
    assert row["chosen_ids"] == expected
    turns = {"prompt": [{"role": "user", "content": PROMPT}]}
    answers = {key: [{"role": "assistant", "content": PAIR[key]}] for key in ("chosen", "rejected")}
    path = _save(folder / "rm", LlamaForSequenceClassification, tok, num_labels=1)
    rows = datasets.Dataset.from_list([{**turns, **answers}])
    stock = trl.RewardTrainer(model=path, args=settings, train_dataset=rows, processing_class=tok)
    assert stock.train_dataset[0]["chosen_ids"] == expected  # published reward models were trained so
    reward = ClassifierReward.load(RewardConfig(model=path, device="cpu"))
    assert reward.encode({"prompt": PROMPT}, RESPONSE) == expected


def _value(family: Family, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    rewarded = {"prompt": PROMPT, "completion": RESPONSE, "reward": 1.0}
    rows = datasets.Dataset.from_list(
        [{**rewarded, "finish_reason": reason} for reason in ("eos", "stop", None, "length")]
    )
    expected = ids(tok, family.prompt, RESPONSE)
    closed = [*expected, *ids(tok, family.end)]
    sequences = [row["sequences"] for row in encode_rewarded(rows, Renderer(tok, None))]
    assert sequences == [[closed], [closed], [closed], [expected]]
    pair = encode_pairs(datasets.Dataset.from_list([PAIR]), Renderer(tok, None))[0]
    assert pair["sequences"] == [closed, ids(tok, family.prompt, "No.", family.end)]


def _dpo(family: Family, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    settings = _settings(trl.DPOConfig, folder)
    row = _trained_on(DPOTrainer, settings, LlamaForCausalLM, PAIR, tok)
    assert row["prompt_ids"] == ids(tok, family.prompt)
    assert row["chosen_ids"] == ids(tok, RESPONSE, family.end)
    assert row["rejected_ids"] == ids(tok, "No.", family.end)


def _sft(family: Family, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    row = _trained_on(
        trl.SFTTrainer,
        _settings(trl.SFTConfig, folder),
        LlamaForCausalLM,
        {"prompt": [{"role": "user", "content": PROMPT}], "completion": RESPONSE},
        tok,
    )
    prompt, response = ids(tok, family.prompt), ids(tok, RESPONSE, family.end)
    assert row["input_ids"] == prompt + response
    assert row["labels"] == [-100] * len(prompt) + response


def _distance(family: Family, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    row = {"prompt": PROMPT, "response": RESPONSE, "finish_reason": "eos"}
    prompt, response = ids(tok, family.prompt), ids(tok, RESPONSE, family.end)
    sampled = ids(tok, RESPONSE, family.eos)
    stopped = {"finish_reason": "stop", "token_ids": ids(tok, RESPONSE, "\n\n")}
    for case in (row, {**row, "token_ids": sampled}, {**row, **stopped}):
        encoded = encode_response(tok, case)
        assert (encoded.prompt_ids, encoded.response_ids) == (prompt, response)


def _search(family: Family, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    """Value heads by ids, and a classifier through text, on responses that ended in three ways."""
    base = ModelConfig(path=_save(folder / "base", LlamaForCausalLM, tok))
    heads = {
        "scalar": (LlamaForTokenClassification, 1),
        "vocabulary": (LlamaForTokenClassification, len(tok)),
        "classifier": (LlamaForSequenceClassification, 1),
    }
    for name, (kind, num_labels) in heads.items():
        path = _save(folder / name, kind, tok, num_labels=num_labels)
        models = load_models(base, values=[ValueConfig(model=ModelConfig(path=path))])
        value = models.values[0]
        infos = [models.infos.base, value.model.info]
        tasks, _ = make_tasks([{"prompt": PROMPT}], infos, SamplingConfig(max_new_tokens=64))
        assert list(tasks[0].prompt_ids.values()) == [tuple(ids(tok, family.prompt))] * 2
        eos_ids = ids(tok, family.eos)
        stops = StopChecker(eos_ids, ["\n\n"], lambda i: tok.decode(i, skip_special_tokens=True))
        guides = [(value, 1.0)]
        by_text = name == "classifier"
        scorer = TextGuides(models.infos.base, guides if by_text else [], [] if by_text else guides, stops)
        endings = [
            Hypothesis(tuple(ids(tok, RESPONSE, family.eos)), finish_reason="eos"),
            Hypothesis(tuple(ids(tok, RESPONSE, "\n\n")), finish_reason="stop"),
            Hypothesis(tuple(ids(tok, RESPONSE + "\n\nmore")), finish_reason="stop"),
        ]
        if family.eos == family.end and not by_text:  # the id that ended it is the guide's own
            assert not scorer.must_read(endings.pop(0))
        assert by_text or all(map(scorer.must_read, endings))
        pieces = [family.judged] if by_text else [family.prompt, RESPONSE, family.end]
        expected = _score(value.model.module, ids(tok, *pieces), name)
        found = scorer(tasks * len(endings), endings)
        assert found == pytest.approx([expected] * len(endings), abs=1e-9)


def _score(model: torch.nn.Module, tokens: list[int], kind: str) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    if kind == "vocabulary":
        return float(logits[-2, tokens[-1]])
    return float(logits[0] if kind == "classifier" else logits[-1, 0])


@pytest.mark.parametrize("stage", [_reward, _value, _dpo, _sft, _distance, _search])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_training_and_reading_see_the_ids_that_are_right(
    name: str, stage: Callable[[Family, PreTrainedTokenizerFast, Path], None], tmp_path: Path
) -> None:
    stage(FAMILIES[name], tokenizer(FAMILIES[name]), tmp_path)


def test_a_model_remembers_how_its_prompts_were_rendered(tmp_path: Path) -> None:
    tok = tokenizer(FAMILIES["r1-distill"])
    folder = tmp_path / "value"
    path = _save(folder, LlamaForTokenClassification, tok, num_labels=1)
    inspect_model(ModelConfig(path=path), "value")  # of other makers
    write_format(folder, Renderer(tok, None).describe())
    assert json.loads((folder / PROMPT_FORMAT).read_text())["end"] == "<｜end▁of▁sentence｜>"
    inspect_model(ModelConfig(path=path), "value")
    inspect_model(ModelConfig(path=path, template="chat"), "value")
    message = (
        r"value \(.*\): was trained on prompts such as '<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜>"
        r"<think>\\n', closed by '<｜end▁of▁sentence｜>', but its template now gives 'Q: Hello', closed by "
        r".*; set its template to 'chat'"
    )
    with pytest.raises(UserError, match=message):
        inspect_model(ModelConfig(path=path, template="Q: {prompt}"), "value")
    assert isinstance(tok.chat_template, str)
    tok.chat_template = tok.chat_template.replace("<think>\\n", "")
    tok.save_pretrained(folder)
    with pytest.raises(UserError, match=r"Hello<｜Assistant｜><think>\\n', .* gives '[^']*<｜Assistant｜>'"):
        inspect_model(ModelConfig(path=path), "value")
    (folder / PROMPT_FORMAT).write_text("{")
    with pytest.raises(UserError, match=r"value \(.*\): prompt_format.json is not readable"):
        inspect_model(ModelConfig(path=path), "value")


def test_a_reward_model_is_not_read_in_another_template(tmp_path: Path) -> None:
    tok = tokenizer(FAMILIES["phi3"])
    path = _save(tmp_path / "rm", LlamaForSequenceClassification, tok, num_labels=1)
    write_format(tmp_path / "rm", Renderer(tok, None).describe())
    ClassifierReward.load(RewardConfig(model=path, device="cpu"))
    with pytest.raises(UserError, match=r"reward model .*: was trained on prompts such as '<\|user\|>"):
        ClassifierReward.load(RewardConfig(model=path, template="{prompt}", device="cpu"))


def test_a_model_without_an_end_is_refused(tmp_path: Path) -> None:
    tok = tokenizer(FAMILIES["qwen3"])
    tok.chat_template = None
    tok.eos_token = None
    row = {"prompt": PROMPT, "response": RESPONSE, "finish_reason": "stop"}
    with pytest.raises(UserError, match=r"has a token that ends a response.*give the tokenizer an eos_token"):
        encode_response(tok, row)
    path = _save(tmp_path / "rm", LlamaForSequenceClassification, tok, num_labels=1)
    with pytest.raises(UserError, match=r"reward model .*: neither its chat template nor its tokenizer"):
        ClassifierReward.load(RewardConfig(model=path, device="cpu"))
    infos = inspect_models(
        ModelConfig(path=_save(tmp_path / "lm", LlamaForCausalLM, tok)),
        values=[ValueConfig(model=ModelConfig(path=path))],
    )
    with pytest.raises(UserError, match=r"value \(.*\): neither its chat template nor its tokenizer"):
        plan_guides(infos, SearchConfig(chunk_guidance="explicit", num_beams=2))


def test_whole_conversations_are_refused_where_decoding_opens_an_answer_otherwise(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
    rows = datasets.Dataset.from_list([{"messages": turns}])
    settings = _settings(trl.SFTConfig, tmp_path)
    assert encode(rows, "rows", Renderer(tokenizer(FAMILIES["qwen3"]), None), settings) is rows
    with pytest.raises(
        UserError, match=r"rows: decoding opens an answer with .*<think>\\n'.*instead of messages"
    ):
        encode(rows, "rows", Renderer(tokenizer(FAMILIES["r1-distill"]), None), settings)


def test_settings_that_would_render_rows_anew_are_refused(tmp_path: Path) -> None:
    rows, tok = datasets.Dataset.from_list([PAIR]), tokenizer(FAMILIES["llama3.1"])
    with pytest.raises(UserError, match="chat_template_path would give the model another template"):
        apply_tokens(tok, _settings(trl.RewardConfig, tmp_path, chat_template_path="x.jinja"))
    with pytest.raises(UserError, match="eos_token 'none' is not in the tokenizer's vocabulary"):
        apply_tokens(tok, _settings(trl.RewardConfig, tmp_path, eos_token="none"))
    plain = _settings(trl.RewardConfig, tmp_path, eos_token="<|end_of_text|>")
    apply_tokens(tok, plain)
    encoded = encode(rows, "rows", Renderer(tok, "{prompt}: "), plain)
    assert tok.decode(encoded[0]["chosen_ids"][-1]) == "<|end_of_text|>"
    completions = datasets.Dataset.from_list([{"prompt": PROMPT, "completion": RESPONSE}])
    with pytest.raises(UserError, match="rows: assistant_only_loss is for rows of messages"):
        encode(
            completions,
            "rows",
            Renderer(tok, None),
            _settings(trl.SFTConfig, tmp_path, assistant_only_loss=True),
        )


def test_a_template_that_fails_or_never_ends_is_one_line() -> None:
    tok = tokenizer(FAMILIES["phi3"])
    turns = [{"role": "user", "content": "a"}]
    for source, message in {
        "{{ raise_exception('no') }}": "refuses the messages: no",
        "{{ messages[7].content.x }}": "refuses the messages: ",
        "{{ 1 // 0 }}": "fails on the messages: ZeroDivisionError: ",
        "{{ 'a' + 1 }}": "fails on the messages: TypeError: ",
        "{{ '%d' % 'a' }}": "fails on the messages: TypeError: ",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "fails on the messages: RecursionError: ",
        "{{ none.x.y }}": "refuses the messages: ",
        "{% if %}": "refuses the messages: ",
    }.items():
        tok.chat_template = source
        with pytest.raises(UserError, match=f"chat template of .* {message}"):
            write_conversation(tok, turns, add_generation_prompt=True)
    nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tok.chat_template = nested
    start = time.monotonic()
    with pytest.raises(UserError, match=r"has not ended after 0.3 s; mend it, or give a format string"):
        write_conversation(tok, turns, add_generation_prompt=True, time_limit=0.3)
    assert time.monotonic() - start < 5
    deadline = time.monotonic() + 5
    while any(thread.daemon and "write" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline  # its thread is ended too
        time.sleep(0.01)


def test_turns_that_a_template_leaves_out_are_refused() -> None:
    tok = tokenizer(FAMILIES["phi3"])
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with pytest.raises(UserError, match=r"leaves out message 1 of 2 \(role 'developer'\)"):
        Renderer(tok, None).prompt_ids({"messages": turns})
