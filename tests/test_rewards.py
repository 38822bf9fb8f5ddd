"""Rewards: VADER by sentence, sequence classifiers by their head, callables by dotted name."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2ForSequenceClassification
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from ivg import rewards
from ivg.errors import UserError
from tests import tiny

ROWS = [{"prompt": "ab"}, {"prompt": "b c"}]


def length(rows: Sequence[Any], responses: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def too_few(rows: Sequence[Any], responses: Sequence[str]) -> list[float]:
    return [0.0]


NOT_CALLABLE = 3


def test_sentiment_is_the_mean_over_sentences() -> None:
    analyzer = SentimentIntensityAnalyzer()
    parts = ["A great film!", "The plot was awful.", "It ends"]
    expected = sum(analyzer.polarity_scores(part)["compound"] for part in parts) / 3
    assert rewards.sentiment("A great film!  The plot was awful.\nIt ends") == pytest.approx(expected)
    # Neither saturates nor grows with length.
    assert rewards.sentiment("A great film. " * 20) == pytest.approx(rewards.sentiment("A great film."))


def test_a_text_without_sentences_has_no_sentiment() -> None:
    assert math.isnan(rewards.sentiment(" ... \n"))


def test_vader_reads_the_whole_text_or_the_response() -> None:
    rows, responses = [{"prompt": "A great film."}], [" The plot was awful."]
    whole, response = rewards.vader(rows, responses)[0], rewards.vader_completion(rows, responses)[0]
    assert response < 0
    assert whole == pytest.approx((rewards.sentiment("A great film.") + response) / 2)


def test_vader_refuses_conversations() -> None:
    turns = [{"role": "user", "content": "x"}] * 3
    with pytest.raises(UserError, match="conversation of several turns"):
        rewards.vader([{"messages": turns}], ["y"])


def test_functions_by_dotted_name() -> None:
    reward = rewards.load_reward(rewards.RewardConfig(function="tests.test_rewards.length"))
    assert rewards.score(reward, ROWS, ["abc", ""], "length") == [3.0, 0.0]
    assert rewards.load_reward(rewards.RewardConfig(function="ivg.rewards.vader")) is rewards.vader


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vader", "not a dotted name"),
        ("no.such.module", "cannot import no.such"),
        ("tests.test_rewards.lenght", "defines no lenght"),
        ("tests.test_rewards.NOT_CALLABLE", "is a int; give a callable"),
    ],
)
def test_bad_function_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rewards.load_reward(rewards.RewardConfig(function=name))


def test_one_score_per_response() -> None:
    with pytest.raises(UserError, match="returned 1 scores for 2 responses"):
        rewards.score(too_few, ROWS, ["a", "b"], "too_few")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one"),
        ({"function": "a.b", "model": "m"}, "exactly one"),
        ({"model": "m", "batch_size": 0}, "batch_size is 0"),
        ({"function": "a.b", "label": "POSITIVE"}, "label and template belong to a classifier"),
    ],
)
def test_config_checks(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rewards.RewardConfig(**values)


def _classifier(folder: Path, **config: Any) -> str:
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny.gpt2_config(len(tiny.LETTERS) + 2, **config))
    return tiny.save(folder, tiny.scale_up(model))


def _logits(path: str, text: str) -> list[float]:
    """Compute one text's logits by itself, unpadded, at its last token."""
    model = GPT2ForSequenceClassification.from_pretrained(path).eval()
    ids = tiny.tokenizer()(text)["input_ids"] + [tiny.tokenizer().eos_token_id]
    hidden = model.transformer(torch.tensor([ids])).last_hidden_state[0, -1]
    return model.score(hidden).tolist()


def test_single_output_classifier_gives_its_logit_whatever_the_batch(tmp_path: Path) -> None:
    path = _classifier(tmp_path / "rm", num_labels=1)
    reward = rewards.load_reward(rewards.RewardConfig(model=path, template="a {prompt}", device="cpu"))
    responses = ["c", " longer text"]
    expected = [
        _logits(path, f"a {row['prompt']}{text}")[0] for row, text in zip(ROWS, responses, strict=True)
    ]
    assert reward(ROWS, responses) == pytest.approx(expected, abs=1e-5)


def test_labelled_classifier_gives_log_odds(tmp_path: Path) -> None:
    labels = {0: "NEG", 1: "NEUTRAL", 2: "POS"}
    path = _classifier(tmp_path / "rm", id2label=labels, label2id={v: k for k, v in labels.items()})
    reward = rewards.load_reward(rewards.RewardConfig(model=path, label="POS", device="cpu"))
    for row in ROWS:
        p = torch.tensor(_logits(path, row["prompt"] + "c")).softmax(0)[2].item()
        assert reward([row], ["c"])[0] == pytest.approx(math.log(p / (1 - p)), abs=1e-4)


def test_wrong_heads_are_found_before_weights_load(tmp_path: Path) -> None:
    path = _classifier(tmp_path / "rm", num_labels=2)
    (tmp_path / "rm" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="has 2 labels, but no label was given; give one of LABEL_0, LABEL_1"):
        rewards.load_reward(rewards.RewardConfig(model=path))
    with pytest.raises(UserError, match="it has no label 'POS'"):
        rewards.load_reward(rewards.RewardConfig(model=path, label="POS"))
    causal = tiny.save(tmp_path / "lm", tiny.causal(0))
    with pytest.raises(
        UserError, match="is a GPT2LMHeadModel; expected a model with a sequence-classification"
    ):
        rewards.load_reward(rewards.RewardConfig(model=causal))
    with pytest.raises(UserError, match="not a model folder or Hub name"):
        rewards.load_reward(rewards.RewardConfig(model=str(tmp_path / "nowhere")))
