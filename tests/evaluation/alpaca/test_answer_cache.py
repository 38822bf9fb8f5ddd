import json

import pytest

from ivg.errors import UserError
from ivg.evaluation.alpaca.answer_cache import AnswerCache, request_key


def test_answers_are_on_disk_at_once_and_read_back(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    with AnswerCache(path) as cache:
        cache.put("k", {"choices": ["é"]})
        assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["k"]
    with AnswerCache(path) as again:
        assert again.get("k") == {"choices": ["é"]}
        assert again.get("other") is None
        assert len(again) == 1


def test_a_line_that_a_kill_left_unfinished_is_cut_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a", "answer": {"n": 1}}\n{"key": "b", "ans')
    with AnswerCache(path) as cache:
        cache.put("c", {"n": 3})
    with AnswerCache(path) as again:
        assert (again.get("a"), again.get("b"), again.get("c")) == ({"n": 1}, None, {"n": 3})


def test_damage_elsewhere_is_refused_with_its_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a", "answer": {}}\n{"key": "b"}\n')
    with pytest.raises(UserError, match="line 2: not a kept answer"):
        AnswerCache(path)


def test_two_evaluations_do_not_share_a_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswerCache(path), pytest.raises(UserError, match="another evaluation is writing"):
        AnswerCache(path)
    with AnswerCache(path) as cache:
        assert len(cache) == 0


def test_a_key_changes_with_all_that_can_change_the_answer():
    request = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 1}
    keys = {
        request_key("http://a", "chat", request),
        request_key("http://b", "chat", request),
        request_key("http://a", "text", request),
        request_key("http://a", "chat", {**request, "temperature": 0}),
        request_key("http://a", "chat", {**request, "model": "n"}),
    }
    assert len(keys) == 5
    assert request_key("http://a", "chat", dict(reversed(request.items()))) in keys
