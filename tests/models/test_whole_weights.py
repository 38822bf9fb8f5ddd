"""A checkpoint that lacks weights is refused by every loader, and adapters load as they were saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
)

from ivg import rewards
from ivg.config import ModelConfig, PairConfig, ValueConfig
from ivg.errors import UserError
from ivg.models.inspection import inspect_model
from ivg.models.loading import load_models, load_weights
from ivg.training.arguments import ModelArguments
from ivg.training.models import load_tokenizer, planned_config
from tests import tiny

VOCAB = len(tiny.LETTERS) + 2
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
    # PEFT tells of what is untied here before merging.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]


def _saved(folder: Path, model: Any) -> str:
    return tiny.save(folder, tiny.scale_up(model, seed=2).float())


def _classifier(folder: Path, num_labels: int = 1) -> str:
    config = tiny.gpt2_config(VOCAB, num_labels=num_labels)
    return _saved(folder, GPT2ForSequenceClassification(config))


def _rename(folder: str, old: str, new: str | None) -> None:
    file = Path(folder) / "model.safetensors"
    state = load_file(file)
    tensor = state.pop(old)
    save_file(state if new is None else {**state, new: tensor}, file)


def _say(folder: str, file: str = "config.json", **values: Any) -> None:
    path = Path(folder) / file
    said = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


@pytest.mark.parametrize("other", [None, "value_head.weight", "v_head.summary.weight"])
def test_a_reward_without_its_head_is_refused(tmp_path: Path, other: str | None) -> None:
    path = _classifier(tmp_path / "rm")
    _rename(path, "score.weight", other)
    expected = "1 weights are missing from its checkpoint, such as score.weight"
    expected += "; give" if other is None else f" (it has {other}, which no stock class reads)"
    with pytest.raises(UserError) as caught:
        rewards.load_reward(rewards.RewardConfig(model=path))
    assert expected in str(caught.value)
    base = tiny.save(tmp_path / "base", tiny.causal(0))
    with pytest.raises(UserError, match=r"missing from its checkpoint, such as score\.weight"):
        load_models(base, values=[ValueConfig(model=ModelConfig(path=path))])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_head_of_one_row_without_num_labels_is_one_label(tmp_path: Path, sharded: bool) -> None:
    path = _classifier(tmp_path / "rm")
    config = rewards.RewardConfig(model=path)
    rows, texts = [{"prompt": "ab"}, {"prompt": "ba"}], [" cd", " e"]
    expected = rewards.load_reward(config)(rows, texts)
    _say(path, id2label=None, label2id=None, num_labels=None)
    if sharded:
        (tmp_path / "rm" / "model.safetensors").rename(tmp_path / "rm" / "part.safetensors")
        keys = load_file(tmp_path / "rm" / "part.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "part.safetensors")}
        (tmp_path / "rm" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert rewards.load_reward(config)(rows, texts) == expected
    value = inspect_model(ModelConfig(path=path), "value")
    assert value.config.num_labels == 1


def test_a_value_head_of_one_row_without_num_labels_is_scalar(tmp_path: Path) -> None:
    model = GPT2ForTokenClassification(tiny.gpt2_config(VOCAB, num_labels=1))
    path = _saved(tmp_path / "value", model)
    _say(path, id2label=None, label2id=None, num_labels=None)
    assert inspect_model(ModelConfig(path=path), "value").kind == "scalar"


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "config.json",
            {"n_layer": 3},
            r"12 weights are missing from its checkpoint, such as transformer\.h\.2\.",
        ),
        (
            "config.json",
            {"n_positions": 10**12},
            r"another shape .*wpe\.weight: \(64, 16\) in the checkpoint",
        ),
    ],
)
def test_every_loader_compares_config_and_weights(
    tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    path = tiny.save(tmp_path / "model", tiny.causal(0))
    _say(path, file, **values)
    for load in (lambda: load_models(path), lambda: load_weights("causal", path, "policy")):
        with pytest.raises(UserError, match=message):
            load()


def _adapter(folder: Path, over: str, task: TaskType, **kwargs: Any) -> PeftModel:
    """Train nothing, but move the adapter and its head away from where they start."""
    base = (
        AutoModelForCausalLM.from_pretrained(over)
        if task == TaskType.CAUSAL_LM
        else GPT2ForSequenceClassification.from_pretrained(over, num_labels=1)
        if task == TaskType.SEQ_CLS
        else AutoModelForTokenClassification.from_pretrained(over, num_labels=kwargs.pop("num_labels"))
    )
    base.config.pad_token_id = tiny.tokenizer().pad_token_id
    adapted = get_peft_model(base, LoraConfig(r=2, task_type=task, fan_in_fan_out=True, **kwargs))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    adapted.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return adapted.eval()


def _ids(text: str) -> torch.Tensor:
    tokenizer = tiny.tokenizer()
    return torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])


def test_a_reward_adapter_scores_as_it_did_when_it_was_saved(tmp_path: Path) -> None:
    over = tiny.save(tmp_path / "lm", tiny.causal(0, dtype=torch.float32))
    adapted = _adapter(tmp_path / "adapter", over, TaskType.SEQ_CLS)
    with torch.no_grad():
        expected = [float(adapted(_ids(text)).logits) for text in ("ab cd", "ba e")]
    reward = rewards.load_reward(rewards.RewardConfig(model=str(tmp_path / "adapter")))
    assert reward([{"prompt": "ab"}, {"prompt": "ba"}], [" cd", " e"]) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-2
    # The same folder as an explicit value.
    base = tiny.save(tmp_path / "base", tiny.causal(0, dtype=torch.float32))
    value = load_models(base, values=[ValueConfig(model=ModelConfig(path=str(tmp_path / "adapter")))]).values[
        0
    ]
    assert value.model.info.kind == "classifier"
    with torch.no_grad():
        assert float(value.model.module(_ids("ab cd")).logits) == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("num_labels", [1, VOCAB])
def test_a_value_adapter_values_as_it_did_when_it_was_saved(tmp_path: Path, num_labels: int) -> None:
    over = tiny.save(tmp_path / "lm", tiny.causal(0, dtype=torch.float32))
    adapted = _adapter(tmp_path / "adapter", over, TaskType.TOKEN_CLS, num_labels=num_labels)
    with torch.no_grad():
        expected = adapted(_ids("ab cd")).logits
    value = load_models(over, values=[ValueConfig(model=ModelConfig(path=str(tmp_path / "adapter")))]).values[
        0
    ]
    assert value.model.info.kind == ("scalar" if num_labels == 1 else "vocabulary")
    with torch.no_grad():
        torch.testing.assert_close(value.model.module(_ids("ab cd")).logits, expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_without_its_head_is_refused(tmp_path: Path) -> None:
    over = tiny.save(tmp_path / "lm", tiny.causal(0, dtype=torch.float32))
    _adapter(tmp_path / "adapter", over, TaskType.SEQ_CLS)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if "score" not in key}, file)
    with pytest.raises(UserError, match=r"score\.weight is missing from its adapter"):
        rewards.load_reward(rewards.RewardConfig(model=str(tmp_path / "adapter")))


def test_an_adapter_that_lacks_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    """PEFT only warns, and computes as if that layer had never been trained."""
    over = tiny.save(tmp_path / "lm", tiny.causal(0, dtype=torch.float32))
    folder = tmp_path / "adapter"
    _adapter(folder, over, TaskType.CAUSAL_LM)
    file = folder / "adapter_model.safetensors"
    lost = next(key for key in load_file(file) if "h.1" in key and "lora_B" in key)
    save_file({key: tensor for key, tensor in load_file(file).items() if key != lost}, file)
    message = r"1 weights are missing from its adapter, such as transformer\.h\.1\..*lora_B"
    with pytest.raises(UserError, match=message):
        load_weights("causal", over, "base", adapter=str(folder))
    pair = PairConfig(tuned=ModelConfig(path=str(folder)), untuned=ModelConfig(path=over))
    with pytest.raises(UserError, match=message):
        load_models(over, pairs=[pair])  # kept apart from its base, as rows with and without it


@pytest.mark.parametrize("targets", [["lm_head"], ["wte"], ["c_attn"]])
def test_an_adapter_on_tied_embeddings_is_merged_as_peft_computes(tmp_path: Path, targets: list[str]) -> None:
    over = tiny.save(tmp_path / "lm", tiny.causal(0, dtype=torch.float32))
    assert AutoModelForCausalLM.from_pretrained(over).config.tie_word_embeddings
    adapted = _adapter(tmp_path / "adapter", over, TaskType.CAUSAL_LM, target_modules=targets)
    with torch.no_grad():
        expected = adapted(_ids("ab cd")).logits
        plain = AutoModelForCausalLM.from_pretrained(over).eval()(_ids("ab cd")).logits
    assert (expected - plain).abs().max() > 0.1
    info = inspect_model(ModelConfig(path=str(tmp_path / "adapter")), "base")
    module = load_weights("causal", over, info.name, adapter=str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(module(_ids("ab cd")).logits, expected, atol=1e-5, rtol=1e-5)
    # Saved, it stays so.
    module.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(_ids("ab cd")).logits
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("over", [None, "", 7, "/another/machine/model"])
def test_an_adapter_that_does_not_say_over_what_names_the_field(tmp_path: Path, over: object) -> None:
    base = tiny.save(tmp_path / "lm", tiny.causal(0, dtype=torch.float32))
    _adapter(tmp_path / "adapter", base, TaskType.CAUSAL_LM)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": over}))
    pair = PairConfig(tuned=ModelConfig(path=str(tmp_path / "adapter")), untuned=ModelConfig(path=base))
    with pytest.raises(UserError, match=r"base_model_name_or_path in its adapter_config\.json is "):
        load_models(base, pairs=[pair])
    with pytest.raises(UserError, match=r"base_model_name_or_path in its adapter_config\.json is "):
        rewards.load_reward(rewards.RewardConfig(model=str(tmp_path / "adapter")))


def test_code_of_a_checkpoint_is_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`yes |` in front of a command ran it."""
    ran = tmp_path / "ran"
    path = tiny.save(tmp_path / "model", tiny.causal(0, dtype=torch.float32))
    code = f"open({str(ran)!r}, 'w')\n"
    (tmp_path / "model" / "code.py").write_text(code)
    _say(path, auto_map={"AutoConfig": "code.Config"}, model_type="own")
    _say(path, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model = ModelArguments(model_name_or_path=path)
    for load in (
        lambda: inspect_model(ModelConfig(path=path), "base"),
        lambda: rewards.load_reward(rewards.RewardConfig(model=path)),
        lambda: planned_config(model, load_tokenizer(model)),
    ):
        with pytest.raises(UserError, match="ships code of its own, which is not run; set trust_remote_code"):
            load()
    assert not ran.exists()
