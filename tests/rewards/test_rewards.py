"""Rewards: VADER by sentence, sequence classifiers by their head, callables by dotted name."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)
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
    reward = rewards.load_reward(rewards.RewardConfig(function="tests.rewards.test_rewards.length"))
    assert rewards.score(reward, ROWS, ["abc", ""], "length") == [3.0, 0.0]
    assert rewards.load_reward(rewards.RewardConfig(function="ivg.rewards.vader")) is rewards.vader


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vader", "not a dotted name"),
        ("no.such.module", "cannot import no.such"),
        ("tests.rewards.test_rewards.lenght", "defines no lenght"),
        ("tests.rewards.test_rewards.NOT_CALLABLE", "is a int; give a callable"),
    ],
)
def test_bad_function_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rewards.load_reward(rewards.RewardConfig(function=name))


def hesitant(rows: Sequence[Any], responses: Sequence[str]) -> list[float | None]:
    return [None if not text else 1.0 for text in responses]


def test_no_score_is_nan() -> None:
    scores = rewards.score(hesitant, ROWS, ["a", ""], "hesitant")
    assert scores[0] == 1.0
    assert math.isnan(scores[1])


@pytest.mark.parametrize("returned", [None, ["high", "low"], [[1.0], [2.0]]])
def test_what_is_no_number_is_refused(returned: Any) -> None:
    with pytest.raises(UserError, match=r"reward odd returned .*; return a list of numbers"):
        rewards.score(lambda rows, responses: returned, ROWS, ["a", "b"], "odd")


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
        ({"model": "m", "template": "Human:"}, "template 'Human:' has no '{prompt}'"),
        ({"model": "m", "template": ""}, "template '' has no '{prompt}'"),
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
    with pytest.raises(UserError, match="no such folder; give a folder written by save_pretrained"):
        rewards.load_reward(rewards.RewardConfig(model=str(tmp_path / "nowhere")))


def _encoder(folder: Path, *, num_positions: int = 12, **config: Any) -> str:
    """A BERT whose tokenizer opens texts with [CLS], closes them with [SEP] and knows no limit."""
    plain = tiny.tokenizer()
    vocab = plain.get_vocab() | {"[CLS]": len(plain), "[SEP]": len(plain) + 1}
    core = Tokenizer(models.WordLevel(vocab, unk_token=tiny.EOS))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    marks = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=tiny.PAD, cls_token="[CLS]", sep_token="[SEP]"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = BertConfig(vocab_size=len(vocab), max_position_embeddings=num_positions, **sizes, **config)
    return tiny.save(folder, tiny.scale_up(BertForSequenceClassification(shape)), tokenizer)


def test_an_encoder_reads_up_to_its_context_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _encoder(tmp_path / "rm", num_labels=1)
    reward = rewards.ClassifierReward.load(rewards.RewardConfig(model=path, device="cpu"))
    # With the prompt's two letters and both marks: 12 tokens just fit.
    whole, cut = reward([ROWS[0]] * 2, ["c" * 8, "c" * 8 + "dd"])
    assert cut == pytest.approx(whole, abs=1e-5)
    assert caplog.messages == [
        f"reward model {path}: 1 of 2 texts are longer than its context of 12 tokens and are read up to there"
    ]
    reward([ROWS[0]] * 2, ["c" * 20, "c" * 21])
    assert reward.num_cut == 3
    assert len(caplog.messages) == 1


def test_a_decoder_gives_no_score_beyond_its_context(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _classifier(tmp_path / "rm", num_labels=1)
    reward = rewards.load_reward(rewards.RewardConfig(model=path, device="cpu"))
    # With the prompt's two letters and EOS: 64 tokens just fit.
    scores = reward([ROWS[0]] * 3, ["c" * 62, "c" * 61, "c"])
    assert [math.isnan(value) for value in scores] == [True, False, False]
    assert scores[1:] == pytest.approx([_logits(path, f"ab{'c' * n}")[0] for n in (61, 1)], abs=1e-4)
    assert "1 of 3 texts are longer than its context of 64 tokens and get no score" in caplog.text


@pytest.mark.parametrize("make", [_encoder, _classifier])
def test_chat_needs_a_chat_template(tmp_path: Path, make: Callable[..., str]) -> None:
    path = make(tmp_path / "rm", num_labels=1)
    with pytest.raises(UserError, match=r"template chat: the tokenizer .* has no chat template"):
        rewards.load_reward(rewards.RewardConfig(model=path, template="chat", device="cpu"))


def test_a_classifier_without_tokenizer(tmp_path: Path) -> None:
    path = _classifier(tmp_path / "rm", num_labels=1)
    for file in (tmp_path / "rm").glob("tokenizer*"):
        file.write_text("{")
    with pytest.raises(UserError, match=r"reward model .*: its tokenizer cannot be read"):
        rewards.load_reward(rewards.RewardConfig(model=path))
