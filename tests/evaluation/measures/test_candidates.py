"""Files of responses whose order is known: every form, and what is refused."""

import json

import pytest

from ivg.errors import UserError
from ivg.evaluation.measures.candidates import read_candidates


def write(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    lines = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines)
    return path


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PREFERENCES = [
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, {"prompt": "q"}),
    (
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"messages": [user("q")]},
    ),
    (
        {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {"messages": [user("q")]},
    ),
    (
        {"prompt": "q", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {"messages": [user("q")]},
    ),
]


@pytest.mark.parametrize(("row", "record"), PREFERENCES)
def test_preferences_in_each_of_trls_forms(tmp_path, row, record):
    found = read_candidates(write(tmp_path, [row, row]))
    assert found.form == "preferences"
    assert found.records == [record] * 4
    assert found.responses == ["good", "bad"] * 2
    assert found.groups.tolist() == [0, 0, 1, 1]
    assert found.rewards.tolist() == [1, 0, 1, 0]


def test_best_of_four_as_rewardbench_has_it(tmp_path):
    row = {"id": "1", "prompt": "q", "chosen": ["good"], "rejected": ["a", "b", "c"], "subset": "Math"}
    found = read_candidates(write(tmp_path, [row], "data.json"))
    assert (found.form, found.responses) == ("best-of-N", ["good", "a", "b", "c"])
    assert found.rewards.tolist() == [1, 0, 0, 0]


def test_responses_with_rewards_meet_by_their_prompt(tmp_path):
    rows = [
        {"prompt": "one", "completion": "a", "reward": 0.5},
        {"prompt": "two", "response": "b", "reward": 1},
        {"prompt": "one", "completion": "c", "reward": -2.5},
    ]
    found = read_candidates(write(tmp_path, rows))
    assert (found.form, found.responses, found.groups.tolist()) == ("rewards", ["a", "c", "b"], [0, 0, 1])
    assert found.rewards.tolist() == [0.5, -2.5, 1]
    assert found.first_prompts(1).responses == ["a", "c"]


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD = [
    ([], "no rows"),
    ([5], "line 1: expected a JSON object"),
    ([{"prompt": "q"}], "found prompt; give rows with"),
    ([{"chosen": "a", "rejected": "b"}], "expected one of prompt, messages, instruction"),
    ([{**PAIR, "chosen": 5}], "chosen is 5; give a text"),
    ([{**PAIR, "chosen": [user("q")]}], "messages that end with the assistant's"),
    ([{**PAIR, "chosen": [user("x"), assistant("a")]}], "answer different conversations"),
    ([{**PAIR, "chosen": [assistant(None)]}], "the last message has no text"),
    ([PAIR, {"prompt": "q", "response": "a", "reward": 1}], "give a file of one kind"),
    ([{"prompt": "q", "response": "a", "reward": True}], "found prompt, response, reward; give"),
    ([{"prompt": "q", "response": "a", "reward": 1}], "there is nothing to rank"),
]


@pytest.mark.parametrize(("rows", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_ranked_is_one_line(tmp_path, rows, message):
    with pytest.raises(UserError) as error:
        read_candidates(write(tmp_path, rows))
    assert message in str(error.value)
