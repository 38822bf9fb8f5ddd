import json
import subprocess
import sys

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


DAMAGED = [
    b'{"key": "b"}',
    b"5",
    b'{"key": "b", "answer": 5}',
    b'{"key": "b", "answer": {"n": NaN}}',
    b'{"key": "b", "answer": {"n": "\\ud800"}}',
    b"[" * 100_000,
    b"9" * 5_000,
    b"\xff\x00",
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_counts_for_nothing(tmp_path, line):
    """What was paid for on the other lines is kept; what the line held is asked again."""
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key": "a", "answer": {"n": 1}}\n' + line + b'\n{"key": "c", "answer": {"n": 3}}\n')
    with AnswerCache(path) as cache:
        assert (cache.get("a"), cache.get("b"), cache.get("c")) == ({"n": 1}, None, {"n": 3})
        assert cache.damaged == [2]
        cache.put("b", {"n": 2})
    with AnswerCache(path) as again:
        assert again.get("b") == {"n": 2}


def test_what_a_full_disk_refuses_leaves_nothing_behind(tmp_path):
    """The limit on a file's size stands for the disk's end; the process is another, which may be limited."""
    path = tmp_path / "answers.jsonl"
    code = f"""
import resource, signal
from pathlib import Path
from ivg.evaluation.alpaca.answer_cache import AnswerCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = AnswerCache(Path({str(path)!r}))
cache.put("a", {{"n": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
try:
    cache.put("b", {{"n": "x" * 100}})
except OSError as error:
    print("refused", error.strerror, cache.get("b"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
cache.put("c", {{"n": 3}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "refused File too large None", done.stderr
    with AnswerCache(path) as again:
        assert (len(again), again.damaged) == (2, [])


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
