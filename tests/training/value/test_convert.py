"""Converted checkpoints score as an independent reading of the originals does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)

from ivg.errors import UserError
from ivg.training.value.convert import convert_value
from ivg.training.value.convert_command import main
from tests import tiny
from tests.models import tiny as guides

VOCAB = len(tiny.LETTERS) + 2


class TokenReward(nn.Module):
    """What the released checkpoints were saved from: a backbone and one linear map per token."""

    def __init__(self, backbone: PreTrainedModel, name: str) -> None:
        super().__init__()
        self.add_module(name, backbone)
        self.backbone = [backbone]
        self.score_head = nn.Linear(16, VOCAB, bias=False)
        nn.init.normal_(self.score_head.weight, generator=torch.Generator().manual_seed(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.score_head(self.backbone[0](input_ids=ids).last_hidden_state)


def _backbone(kind: str) -> PreTrainedModel:
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2, eos_token_id=None
        )
        return tiny.scale_up(GPT2Model(config), seed=1).requires_grad_(False)
    config = LlamaConfig(vocab_size=VOCAB, max_position_embeddings=64, **guides.SIZES)
    return tiny.scale_up(LlamaModel(config), seed=1).requires_grad_(False)


def _checkpoint(folder: Path, kind: str, layout: str, prefix: str) -> TokenReward:
    backbone = _backbone(kind)
    reward = TokenReward(backbone, "model" if kind == "llama" else "transformer")
    folder.mkdir()
    config = backbone.config.to_dict() | {"architectures": ["TokenRewardModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    state = {
        prefix + key: tensor.clone()
        for key, tensor in reward.state_dict().items()
        if key != "score_head.weight"
    }
    if prefix == "bare":
        state = {key.removeprefix("bare").split(".", 1)[1]: tensor for key, tensor in state.items()}
    state["score_head.weight"] = reward.score_head.weight.detach().clone()
    if kind == "gpt2":
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # an old buffer
    if layout == "safetensors":
        save_file(state, folder / "model.safetensors")
    elif layout == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        halves = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
        weight_map = {}
        for i, (key, tensor) in enumerate(state.items()):
            name = list(halves)[i % 2]
            halves[name][key] = tensor
            weight_map[key] = name
        for name, half in halves.items():
            torch.save(half, folder / name)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tiny.tokenizer().save_pretrained(folder)
    return reward.eval()


@pytest.mark.parametrize(
    ("kind", "layout", "prefix"),
    [
        ("gpt2", "safetensors", ""),
        ("gpt2", "bin", "bare"),
        ("llama", "sharded", ""),
        ("llama", "safetensors", "model."),
    ],
)
def test_scores_stay(tmp_path: Path, kind: str, layout: str, prefix: str) -> None:
    reward = _checkpoint(tmp_path / "source", kind, layout, prefix)
    assert convert_value(str(tmp_path / "source"), str(tmp_path / "value")) == VOCAB
    value = AutoModelForTokenClassification.from_pretrained(tmp_path / "value").eval()
    ids = torch.randint(VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = reward(ids), value(ids).logits
    assert before.std() > 1
    assert (before - after).abs().max() < 1e-5
    head = value.score if kind == "llama" else value.classifier
    assert head.weight.shape == (VOCAB, 16)
    assert head.bias.count_nonzero() == 0
    config = json.loads((tmp_path / "value" / "config.json").read_text())
    assert "id2label" not in config
    assert value.config.num_labels == VOCAB
    assert (tmp_path / "value" / "tokenizer_config.json").is_file()


def test_other_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"no config.json there"):
        convert_value(str(tmp_path / "nothing"), str(tmp_path / "value"))
    _checkpoint(tmp_path / "source", "gpt2", "safetensors", "")
    convert_value(str(tmp_path / "source"), str(tmp_path / "value"))
    with pytest.raises(UserError, match="holds a model already; give a new folder"):
        convert_value(str(tmp_path / "source"), str(tmp_path / "value"))
    with pytest.raises(UserError, match=r"has no score_head.weight; expected a token-reward checkpoint"):
        convert_value(str(tmp_path / "value"), str(tmp_path / "again"))
    (tmp_path / "source" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model.safetensors or pytorch_model.bin there"):
        convert_value(str(tmp_path / "source"), str(tmp_path / "again"))
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "nothing"), str(tmp_path / "again")])
    assert "no config.json there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_head.weight": torch.zeros(VOCAB, 5)}, r"score_head.weight is \(33, 5\); expected \(V, 16\)"),
        ({"score_head.bias": torch.ones(VOCAB)}, "score_head has a bias"),
        (
            {"transformer.extra": torch.ones(1)},
            r"1 weights do not fit a gpt2 token classifier, such as .*extra",
        ),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, change: dict[str, torch.Tensor], message: str) -> None:
    reward = _checkpoint(tmp_path / "source", "gpt2", "bin", "")
    state = torch.load(tmp_path / "source" / "pytorch_model.bin") | change
    torch.save(state, tmp_path / "source" / "pytorch_model.bin")
    assert reward.score_head.bias is None
    with pytest.raises(UserError, match=message):
        convert_value(str(tmp_path / "source"), str(tmp_path / "value"))


def test_a_reward_model_of_finished_responses_becomes_a_sequence_classifier(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "source", "llama", "safetensors", "")
    file = tmp_path / "source" / "model.safetensors"
    head = torch.linspace(-1, 1, 16)[None]  # (1, H)
    statistics = {"normalizer.mean": torch.tensor([3.0]), "normalizer.var": torch.tensor([2.0])}
    save_file({**load_file(file), "score_head.weight": head, **statistics}, file)
    assert convert_value(str(tmp_path / "source"), str(tmp_path / "reward")) == 1
    reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    ids = torch.randint(1, VOCAB - 1, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = _backbone("llama")(input_ids=ids).last_hidden_state  # (1, 20, H)
        assert float(reward(input_ids=ids).logits) == pytest.approx(float(hidden[0, -1] @ head[0]), abs=1e-5)


def test_a_reward_model_that_normalises_its_scores_is_refused(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "source", "llama", "safetensors", "")
    file, config = tmp_path / "source" / "model.safetensors", tmp_path / "source" / "config.json"
    save_file({**load_file(file), "score_head.weight": torch.ones(1, 16)}, file)
    config.write_text(json.dumps({**json.loads(config.read_text()), "do_normalize": True}))
    with pytest.raises(UserError, match="normalises its scores"):
        convert_value(str(tmp_path / "source"), str(tmp_path / "reward"))
