"""Value heads: same numbers as the stock classes, without their (rows, time, vocabulary) tensor."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    LlamaConfig,
    PreTrainedModel,
)

from ivg.errors import UserError
from ivg.training.value import heads
from ivg.training.value.policy import Policy
from tests import tiny

VOCAB = len(tiny.LETTERS) + 2


def _llama(num_labels: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=num_labels,
        pad_token_id=0,
    )
    return tiny.scale_up(AutoModelForTokenClassification.from_config(config))


def _batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
    lengths, starts = torch.tensor([[9], [7], [5]]), torch.tensor([[2], [3], [4]])
    positions = torch.arange(9)
    return {
        "input_ids": ids,
        "attention_mask": (positions < lengths).long(),
        "labels": ids.masked_fill((positions >= lengths) | (positions < starts), -100),
    }


@pytest.mark.parametrize("make", [lambda n: tiny.value(0, num_labels=n, dtype=torch.float32), _llama])
def test_vocabulary_head_gives_the_stock_logit_of_the_token_that_came(make: Any) -> None:
    stock, model, batch = make(VOCAB), make(VOCAB), _batch()
    heads.prepare_value_model(model)
    logits = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits  # (R, T, V)
    values = model(**batch)["values"]
    for row in range(3):
        for t in range(9):
            token = batch["labels"][row, t].item()
            expected = logits[row, t - 1, token].item() if token != -100 else 0.0
            assert values[row, t].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("make", [lambda n: tiny.value(0, num_labels=n, dtype=torch.float32), _llama])
def test_vocabulary_head_gives_the_expected_value_of_the_next_token(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_PIECE", 4)  # 14 response positions: three pieces and a rest
    stock, model, batch = make(VOCAB), make(VOCAB), _batch()
    heads.prepare_value_model(model)
    mask = batch["labels"] != -100
    next_logits = torch.randn(3, 9, VOCAB, generator=torch.Generator().manual_seed(2))
    found = model(**batch, next_logits=lambda part: next_logits[mask][part])
    all_values = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert found["values"].equal(model(**batch)["values"])
    for row in range(3):
        for t in range(9):
            weights = [math.exp(x) for x in next_logits[row, t].tolist()]
            values = all_values[row, t].tolist()
            mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            expected = mean if mask[row, t] else 0.0
            assert found["next_values"][row, t].item() == pytest.approx(expected, abs=1e-5)
    assert found["values"].requires_grad
    assert not found["next_values"].requires_grad


def test_scalar_head_gives_the_stock_logit_at_the_token() -> None:
    stock, model = (tiny.value(0, num_labels=1, dtype=torch.float32) for _ in range(2))
    batch = _batch()
    heads.prepare_value_model(model)
    logits = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits  # (R, T, 1)
    expected = logits.squeeze(-1).masked_fill(batch["labels"] == -100, 0.0)
    torch.testing.assert_close(model(**batch)["values"], expected, atol=1e-5, rtol=0)


class _LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_of_rows_by_time_by_vocabulary_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, rows, time = 5000, 4, 32
    config = tiny.gpt2_config(vocab, num_labels=vocab)
    model, stock = (AutoModelForTokenClassification.from_config(config).eval() for _ in range(2))
    heads.prepare_value_model(model)
    ids = torch.randint(0, vocab, (rows, time))
    labels = ids.masked_fill(torch.arange(time) < 4, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with _LargestTensor() as ours:
        model(**inputs)["values"].sum().backward()
    with _LargestTensor() as theirs:
        stock(input_ids=ids).logits.sum().backward()
    assert theirs.numel == rows * time * vocab
    # The largest is the head's own gradient, (V, H).
    assert ours.numel == vocab * config.n_embd < rows * time * vocab

    policy = Policy(AutoModelForCausalLM.from_config(tiny.gpt2_config(vocab)))
    monkeypatch.setattr(heads, "_PIECE", 8)
    with _LargestTensor() as expecting:
        next_logits = policy.next_logits(ids, torch.ones_like(ids), labels != -100)
        model(**inputs, next_logits=next_logits)["values"].sum().backward()
    assert expecting.numel == vocab * config.n_embd


def test_folding_turns_normalised_values_into_rewards() -> None:
    model = tiny.value(3, num_labels=VOCAB)
    ids = _batch()["input_ids"]
    before = model(input_ids=ids).logits
    folded = heads.fold_normalisation(model.state_dict(), "classifier", mean=5.0, std=3.0)
    model.load_state_dict(folded)
    torch.testing.assert_close(model(input_ids=ids).logits, before * 3.0 + 5.0)


def test_folding_reaches_the_head_that_peft_trains() -> None:
    key = "base_model.model.score.modules_to_save.default."
    state = {
        key + "weight": torch.ones(2, 2),
        key + "bias": torch.ones(2),
        "score_norm.weight": torch.ones(2),
    }
    folded = heads.fold_normalisation(state, "score", mean=5.0, std=3.0)
    assert folded[key + "weight"].tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert folded[key + "bias"].tolist() == [8.0, 8.0]
    assert folded["score_norm.weight"].tolist() == [1.0, 1.0]


def test_saved_config_counts_labels_instead_of_naming_them(tmp_path: Path) -> None:
    model = tiny.value(0, num_labels=VOCAB)
    model.save_pretrained(tmp_path)
    assert len(json.loads((tmp_path / "config.json").read_text())["id2label"]) == VOCAB
    heads.compact_labels(tmp_path / "config.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "id2label" not in saved
    assert "label2id" not in saved
    reloaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert reloaded.config.num_labels == VOCAB
    assert torch.equal(reloaded.classifier.weight, model.classifier.weight)


def test_refuses_an_architecture_without_token_classifier() -> None:
    with pytest.raises(UserError, match=r"olmo2 has no token classifier .* gpt2, llama"):
        heads.check_architecture(AutoConfig.for_model("olmo2"))


def test_refuses_a_model_without_a_head() -> None:
    with pytest.raises(UserError, match="GPT2LMHeadModel has no token-classification head"):
        heads.head_name(tiny.causal(0))
