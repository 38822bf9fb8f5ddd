"""What chat templates are told, and conversations that are gone on with: decoding and training alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

import ivg
from ivg.config import ModelConfig, SamplingConfig
from ivg.config.yaml_file import config_from_dict
from ivg.errors import UserError
from ivg.models.inspection import inspect_model
from ivg.models.loading import load_models
from ivg.models.prompts import as_rows, check_row, identities
from ivg.models.rendering import PROMPT_FORMAT, Renderer, write_format
from ivg.training.arguments import DataArguments
from ivg.training.encoding import encode
from tests import tiny
from tests.models.templates import FAMILIES, tokenizer

# TRL sets the old key by default.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
TURNS = [{"role": "user", "content": "Hi there"}]
OPENED = [*TURNS, {"role": "assistant", "content": "Blue"}]
NO_THOUGHT = {"enable_thinking": False}
QWEN3 = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"


def _qwen3() -> PreTrainedTokenizerFast:
    return tokenizer(FAMILIES["qwen3"])


def _folder(path: Path, tok: PreTrainedTokenizerFast) -> str:
    config = tiny.gpt2_config(len(tok), n_positions=256, eos_token_id=tok.eos_token_id, pad_token_id=None)
    return tiny.save(path, GPT2LMHeadModel(config), tok)


def test_a_template_is_told_what_the_option_says() -> None:
    tok = _qwen3()
    assert Renderer(tok, None).prompt_text({"messages": TURNS}) == QWEN3
    told = Renderer(tok, None, NO_THOUGHT)
    assert told.prompt_text({"messages": TURNS}) == f"{QWEN3}<think>\n\n</think>\n\n"
    assert tok.decode(told.prompt_ids({"messages": TURNS})) == f"{QWEN3}<think>\n\n</think>\n\n"


def test_what_it_is_told_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder, tok = _folder(tmp_path / "model", _qwen3()), _qwen3()
    plain, told = Renderer(tok, None).describe(), Renderer(tok, None, NO_THOUGHT).describe()
    assert told["chat_template_kwargs"] == NO_THOUGHT
    assert plain["fingerprint"] != told["fingerprint"]
    write_format(Path(folder), told)
    assert json.loads((Path(folder) / PROMPT_FORMAT).read_text())["chat_template_kwargs"] == NO_THOUGHT
    info = inspect_model(ModelConfig(path=folder, chat_template_kwargs=NO_THOUGHT), "tuned")
    assert info.renderer().prompt_text({"messages": TURNS}).endswith("</think>\n\n")
    with pytest.raises(UserError, match=r"and its chat_template_kwargs to \{'enable_thinking': False\}"):
        inspect_model(ModelConfig(path=folder), "tuned")


def test_training_feeds_what_decoding_feeds() -> None:
    data = DataArguments(dataset_name="x", chat_template_kwargs='{"enable_thinking": false}')
    tok = _qwen3()
    pairs = datasets.Dataset.from_list([{"prompt": "Hi there", "chosen": "Blue", "rejected": "sky"}])
    rows = encode(pairs, "rows", data.renderer(tok), trl.DPOConfig(report_to=[], bf16=False))
    assert tok.decode(rows[0]["prompt_ids"]) == f"{QWEN3}<think>\n\n</think>\n\n"


def test_whole_conversations_hand_the_option_to_trl() -> None:
    """It renders them itself, and tells the template what stands in a column of that name."""
    tok = tiny.tokenizer()
    tok.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}{% if loud %}!{% endif %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}a{% if loud %}!{% endif %}{% endif %}"
    )
    whole = datasets.Dataset.from_list([{"messages": OPENED}])
    settings = trl.SFTConfig(report_to=[], bf16=False)
    rows = encode(whole, "rows", Renderer(tok, None, {"loud": True}), settings)
    assert rows[0]["chat_template_kwargs"] == {"loud": True}
    assert encode(whole, "rows", Renderer(tok, None), settings) is whole


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("enable_thinking", "is not JSON"),
        ("[1]", r"chat_template_kwargs is \[1\]; give a mapping"),
        ({"tools": []}, "'tools' is no variable of a chat template's own"),
    ],
)
def test_bad_training_options_are_refused(given: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        DataArguments(dataset_name="x", chat_template_kwargs=given)


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'add_generation_prompt' is no variable of a chat template's own"):
        ModelConfig(path="m", chat_template_kwargs={"add_generation_prompt": False})
    with pytest.raises(UserError, match=r"chat_template_kwargs is \[1\]; give names with their values"):
        ModelConfig(path="m", chat_template_kwargs=[1])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"'a' is \{1\}; give text, numbers"):
        ModelConfig(path="m", chat_template_kwargs={"a": {1}})
    folder = _folder(tmp_path / "model", _qwen3())
    with pytest.raises(UserError, match=r"'enable_thinkin': the chat template of .* does not read it"):
        inspect_model(ModelConfig(path=folder, chat_template_kwargs={"enable_thinkin": False}), "base")
    with pytest.raises(UserError, match="a format string reads none"):
        inspect_model(ModelConfig(path=folder, template="{prompt}", chat_template_kwargs=NO_THOUGHT), "base")
    data = {"base": {"path": "m", "chat_template_kwargs": NO_THOUGHT}, "input": "i", "output": "o"}
    assert config_from_dict(data).base.chat_template_kwargs == NO_THOUGHT
    with pytest.raises(UserError, match="chat_template_kwargs is"):
        config_from_dict({**data, "base": {"path": "m", "chat_template_kwargs": "no"}})


# After each: the end of the prompt in the family's own template, by hand.
GONE_ON = {
    "qwen3": f"{QWEN3}<think>\n\n</think>\n\nBlue",
    "gemma3": "<bos><start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\nBlue",
    "r1-distill": "<｜begin▁of▁sentence｜><｜User｜>Hi there<｜Assistant｜>Blue",
    "phi3": "<|user|>\nHi there<|end|>\n<|assistant|>\nBlue",
}


@pytest.mark.parametrize("family", GONE_ON)
def test_an_opened_answer_is_gone_on_with(family: str) -> None:
    tok = tokenizer(FAMILIES[family])
    (row,) = as_rows([{"messages": OPENED, "continue_final_message": True}])
    renderer = Renderer(tok, None)
    assert renderer.prompt_text(row) == GONE_ON[family]
    # Judged as a whole, opening and rest are one turn.
    judged = tok.decode(renderer.judged_ids(row, " sky"))
    whole = tok.decode(renderer.judged_ids({"messages": TURNS}, "Blue sky"))
    assert judged == whole


def test_a_record_that_is_gone_on_with_is_decoded(tmp_path: Path) -> None:
    models = load_models(_folder(tmp_path / "model", _qwen3()))
    records = [{"messages": OPENED, "continue_final_message": True}, {"messages": TURNS}]
    found = ivg.generate(records, models, sampling=SamplingConfig(max_new_tokens=2))
    assert len(found) == 2
    assert found[0].prompt["continue_final_message"] is True
    assert len(set(identities(as_rows(records)))) == 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": OPENED}, r"or set continue_final_message: true to go on with it"),
        ({"messages": TURNS, "continue_final_message": True}, "it is the user's"),
        (
            {
                "messages": [*TURNS, {"role": "assistant", "content": " "}],
                "continue_final_message": True,
            },
            "with some text to go on with",
        ),
        ({"prompt": "a", "continue_final_message": True}, "needs 'messages' whose last turn"),
        ({"messages": OPENED, "continue_final_message": "yes"}, "must be true or false, got 'yes'"),
        ({"messages": TURNS, "tools": [{"name": "f"}]}, "field 'tools' beside 'messages' would not reach"),
    ],
)
def test_bad_records_are_refused(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check_row(row, "line 1")


def test_a_system_prompt_reaches_the_model_or_is_refused() -> None:
    said = [{"role": "system", "content": "Rhyme."}, *TURNS]
    text = Renderer(_qwen3(), None).prompt_text({"messages": said})
    assert text == f"<|im_start|>system\nRhyme.<|im_end|>\n{QWEN3}"
    # Gemma 3 writes it before the user's words.
    text = Renderer(tokenizer(FAMILIES["gemma3"]), None).prompt_text({"messages": said})
    assert "<start_of_turn>user\nRhyme.\n\nHi there<end_of_turn>" in text
