"""A thousand instructions: distinct, split by topics and by forms, none like one of another split."""

import itertools
import json
from collections import Counter
from pathlib import Path

import instructions
import pytest

from ivg.config.yaml_file import read_yaml
from ivg.errors import UserError
from tests.smollm2.conftest import RECIPES, load_script

CONFIG = RECIPES / "smollm2" / "prepare.yaml"
prepare = load_script("prepare")


@pytest.fixture(scope="module")
def splits() -> instructions.Splits:
    """The splits as configured."""
    keys = read_yaml(str(CONFIG))
    sizes = {name: keys[name] for name in ("num_train", "num_validation", "num_test")}
    return instructions.split_instructions(keys["seed"], **sizes)


def test_there_are_enough_and_no_two_are_alike(splits):
    together = [text for split in splits for text in split]
    assert len(set(together)) == len(together) >= 900
    assert len(splits.test) == 200


def test_topics_and_forms_are_distinct_and_belong_to_one_split(splits):
    forms = [form for part in instructions.FORMS.values() for form in part]
    assert len(set(forms)) == len(forms)
    assert all(form.count("{topic}") == 1 for form in forms)
    assert len(set(instructions.TOPICS)) == len(instructions.TOPICS)
    used = {name: {topic_of(name, text) for text in split} for name, split in splits._asdict().items()}
    for one, other in itertools.combinations(used.values(), 2):
        assert not one & other
    assert len(used["test"]) == 200  # a test topic is used once


def topic_of(split: str, text: str) -> str:
    """Take a form away from around its topic."""
    for form in instructions.FORMS[split]:
        before, after = form.split("{topic}")
        if text.startswith(before) and text.endswith(after):
            topic = text[len(before) : len(text) - len(after)]
            if topic in instructions.TOPICS:
                return topic
    raise AssertionError(f"{text!r} is of no form of {split}")


def test_every_test_form_is_asked_equally_often(splits):
    openings = Counter(text.replace(topic_of("test", text), "{topic}") for text in splits.test)
    assert openings == dict.fromkeys(instructions.FORMS["test"], 10)


def test_no_instruction_resembles_one_of_another_split(splits):
    for one, other in itertools.combinations(splits, 2):
        assert max(instructions.similarity(a, b) for a in one for b in other) < 1 / 3


def test_similarity_is_the_share_of_common_words():
    # write, a, of common; review, harbour and line, castle not: 3 of 7.
    found = instructions.similarity("Write a review of a harbour.", "Write a line of a castle!")
    assert found == pytest.approx(3 / 7)
    assert instructions.similarity("A castle?", "a castle") == 1


def test_splits_follow_the_seed():
    sizes = {"num_train": 50, "num_validation": 10, "num_test": 20}
    assert instructions.split_instructions(3, **sizes) == instructions.split_instructions(3, **sizes)
    assert instructions.split_instructions(3, **sizes) != instructions.split_instructions(4, **sizes)


def test_topics_take_turns_and_meet_another_form_each_time():
    assert instructions._fill(["a {topic}", "b {topic}"], ["x", "y"], 4) == ["a x", "b y", "b x", "a y"]
    with pytest.raises(ValueError, match="2 forms and 2 topics make fewer than 5 instructions"):
        instructions._fill(["a {topic}", "b {topic}"], ["x", "y"], 5)


def config_file(folder: Path, num_test: int) -> str:
    """Write a small configuration."""
    keys = {"seed": 1, "num_train": 9, "num_validation": 3, "num_test": num_test, "system": "Be."}
    path = folder / "prepare.yaml"
    path.write_text(json.dumps({"output_dir": f"{folder}/data", **keys}), encoding="utf-8")
    return str(path)


def test_prepare_writes_conversations(tmp_path):
    prepare.main(["--config", config_file(tmp_path, num_test=4)])
    sizes = {"train": 9, "validation": 3, "test": 4}
    for name, size in sizes.items():
        lines = (tmp_path / "data" / f"prompts.{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["id"] for row in rows] == [f"{name}-{i}" for i in range(size)]
        for row in rows:
            assert [turn["role"] for turn in row["messages"]] == ["system", "user"]
            assert row["messages"][0]["content"] == "Be."
    plain = (tmp_path / "data" / "prompts.text.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [{"id": row["id"], "prompt": row["messages"][1]["content"]} for row in rows]
    assert [json.loads(line) for line in plain] == asked  # of the test split, the last above


def test_prepare_refuses_more_than_there_are(tmp_path):
    with pytest.raises(UserError, match=r"400 test instructions need as many topics.*lower num_train"):
        prepare.main.__wrapped__(["--config", config_file(tmp_path, num_test=400)])
