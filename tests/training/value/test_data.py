"""Value rows are exactly the ids that decoding feeds the value model."""

import datasets

from ivg.models.prompts import encode_prompt
from ivg.models.rendering import Renderer
from ivg.training.value.data import ValueCollator, encode_pairs, encode_rewarded
from tests import tiny

ROWS = datasets.Dataset.from_list(
    [
        {"prompt": "ab", "completion": " cd", "reward": 1.0, "finish_reason": "eos"},
        {"prompt": "ab", "completion": "e", "reward": -1.0, "finish_reason": "length"},
        {"prompt": "b", "completion": "e", "reward": 0.5, "finish_reason": "eos"},
    ]
)


def test_prompt_in_its_template_then_response_then_eos_where_it_ended() -> None:
    tokenizer = tiny.tokenizer()
    encoded = encode_rewarded(ROWS, Renderer(tokenizer, "x{prompt}!"))
    prompt = encode_prompt(tokenizer, {"prompt": "ab"}, "x{prompt}!")
    ids = tokenizer.get_vocab()
    assert encoded[0]["sequences"] == [[*prompt, ids[" "], ids["c"], ids["d"], tokenizer.eos_token_id]]
    assert encoded[1]["sequences"] == [[*prompt, ids["e"]]]
    assert [row["num_prompt_tokens"] for row in encoded] == [4, 4, 3]
    assert [row["group"] for row in encoded] == [0, 0, 1]


def test_conversational_rows_go_through_the_chat_template() -> None:
    tokenizer = tiny.tokenizer(chat=True)
    messages = [{"role": "user", "content": "ab"}]
    rows = datasets.Dataset.from_list(
        [{"prompt": messages, "completion": [{"role": "assistant", "content": "c"}], "reward": 1.0}]
    )
    encoded = encode_rewarded(rows, Renderer(tokenizer, None))
    expected = [
        *encode_prompt(tokenizer, {"messages": messages}),
        tokenizer.get_vocab()["c"],
        tokenizer.eos_token_id,
    ]
    assert encoded[0]["sequences"] == [expected]


def test_collator_pads_right_and_labels_responses_only() -> None:
    tokenizer = tiny.tokenizer()
    batch = ValueCollator(tokenizer.pad_token_id)(encode_rewarded(ROWS, Renderer(tokenizer, None)))
    ids, pad, eos = tokenizer.get_vocab(), tokenizer.pad_token_id, tokenizer.eos_token_id
    assert batch["input_ids"].tolist() == [
        [[ids["a"], ids["b"], ids[" "], ids["c"], ids["d"], eos]],
        [[ids["a"], ids["b"], ids["e"], pad, pad, pad]],
        [[ids["b"], ids["e"], eos, pad, pad, pad]],
    ]
    assert batch["attention_mask"].sum(-1).tolist() == [[6], [3], [3]]
    assert batch["labels"].tolist() == [
        [[-100, -100, ids[" "], ids["c"], ids["d"], eos]],
        [[-100, -100, ids["e"], -100, -100, -100]],
        [[-100, ids["e"], eos, -100, -100, -100]],
    ]
    assert batch["rewards"].tolist() == [1.0, -1.0, 0.5]
    assert batch["groups"].tolist() == [0, 0, 1]


def test_collator_keeps_chosen_and_rejected_of_a_pair_together() -> None:
    tokenizer = tiny.tokenizer()
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "bc", "rejected": "d"}] * 2)
    batch = ValueCollator(tokenizer.pad_token_id)(encode_pairs(rows, Renderer(tokenizer, None)))
    ids, eos = tokenizer.get_vocab(), tokenizer.eos_token_id
    pair = [[-100, ids["b"], ids["c"], eos], [-100, ids["d"], eos, -100]]
    assert batch["labels"].tolist() == [pair, pair]
    assert "rewards" not in batch
