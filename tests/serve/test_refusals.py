"""Whatever a client sends wrong gets a status and one sentence in OpenAI's form, never a traceback."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serve.server import PRESETS, Running, serving

CHAT = {"model": "ivg", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "base", "prompt": "hi"}


def send(server: Running, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        with connection.getresponse() as answer:
            return answer.status, answer.read()


def post(server: Running, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    status, answer = send(server, "POST", path, body, **headers)
    return status, json.loads(answer)


BAD_BODIES = [
    ("", "not valid JSON|no JSON object|missing"),
    ("{", "the body is not valid JSON"),
    ("[]", "the body is no JSON object"),
    ('"text"', "the body is no JSON object"),
    ("\xff\xfe", "not valid JSON|parsing the body|no JSON"),
    ("[" * 100_000, "not valid JSON|parsing the body"),
    ('{"model": "base", "prompt": "a", "seed": ' + "9" * 5000 + "}", "not valid JSON|parsing the body"),
]


@pytest.mark.parametrize(("body", "expected"), BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_bodies_that_are_no_requests(server: Running, body: str, expected: str) -> None:
    status, answer = post(server, "/v1/completions", body.encode("latin-1"))
    assert status == 400
    check(answer, expected)


COMPLETIONS: list[tuple[dict[str, Any], int, str]] = [
    ({"prompt": None}, 400, "prompt is None; give a text"),
    ({"prompt": []}, 400, "prompt is \\[\\]"),
    ({"prompt": [1, "a"]}, 400, "give a text, a list of texts"),
    ({"prompt": [True]}, 400, "give a text, a list of texts"),
    ({"prompt": [[]]}, 400, "give a text, a list of texts"),
    ({"prompt": ""}, 400, "prompt must be a non-empty string"),
    ({"prompt": "\ud800"}, 400, "half a surrogate pair"),
    ({"prompt": [0, 33]}, 400, "token id 33; the base has 0 to 32"),
    ({"prompt": [-1]}, 400, "token id -1"),
    ({"prompt": "h" * 60, "max_tokens": 16}, 400, "exceeds its context of 64; Please reduce the prompt"),
    ({"prompt": "h" * 64}, 400, "context of 64"),
    ({"prompt": ["a"] * 9}, 400, "9 prompts x n 1 are more than 8 responses"),
    ({"n": 9}, 400, "1 prompts x n 9 are more than 8"),
    ({"n": 0}, 400, "n is 0: input should be greater than or equal to 1"),
    ({"n": 2, "temperature": 0}, 400, "num_samples 2 would repeat one response"),
    ({"n": 2, "model": "ivg"}, 400, "model 'ivg' searches for one response"),
    ({"best_of": 3}, 400, "best_of 3 is not served"),
    ({"max_tokens": 41}, 400, "max_tokens is 41; give 0 to 40"),
    ({"max_tokens": 0}, 400, "max_tokens 0 without echo"),
    ({"max_tokens": -1, "echo": True}, 400, "max_tokens is -1"),
    ({"max_tokens": "16"}, 400, "max_tokens is '16': input should be a valid integer"),
    ({"temperature": -0.5}, 400, "temperature is -0.5"),
    ({"temperature": float("nan")}, 400, "temperature is nan"),
    ({"temperature": 0, "model": "ivg"}, 400, "temperature 0 is greedy"),
    ({"top_p": 0}, 400, "top_p is 0"),
    ({"top_p": 1.5}, 400, "top_p is 1.5"),
    ({"seed": 2**70}, 400, "seed"),
    ({"seed": True}, 400, "seed is True"),
    ({"stop": ""}, 400, "empty string"),
    ({"stop": ["a", 1]}, 400, "stop.1 is 1|stop is"),
    ({"stop": ["a"] * 33}, 400, "stop"),
    ({"stop": "a<eos>"}, 400, "special token '<eos>'"),
    ({"logprobs": 1, "model": "ivg"}, 400, "searches over chunks"),
    ({"logprobs": 1, "model": "ivg", "temperature": 0, "echo": True}, 400, "searches over chunks"),
    ({"logprobs": 21}, 400, "logprobs is 21"),
    ({"logprobs": 1, "stream": True}, 400, "log-probs are not streamed"),
    ({"stream_options": {"include_usage": True}}, 400, "goes with stream"),
    ({"stream": "yes"}, 400, "stream is 'yes'"),
    ({"model": "gpt-4"}, 404, "no model 'gpt-4' here; give one of ivg, eft, base"),
    ({"model": None}, 400, "model is None"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty 0.5 is not served"),
    ({"logit_bias": {"5": -100}}, 400, "logit_bias .* is not served"),
    ({"suffix": "x"}, 400, "suffix 'x' is not served"),
    ({"temprature": 1}, 400, "unknown field 'temprature'; did you mean 'temperature'"),
    ({"guidance": {"beta": 1}}, 400, "model 'base' has no token guidance"),
    ({"guidance": {"num_beams": 2}}, 400, "guidance.num_beams: model 'base' has no chunk guidance"),
    ({"guidance": {"bta": 1}, "model": "ivg"}, 400, "unknown field 'guidance.bta'"),
    ({"guidance": {"function": "os.system"}, "model": "ivg"}, 400, "unknown field"),
    ({"guidance": {"beta": 4.5}, "model": "eft"}, 400, "guidance.beta is 4.5; give 0 to 4"),
    ({"guidance": {"beta": -1}, "model": "eft"}, 400, "guidance.beta is -1"),
    ({"guidance": {"beta": float("inf")}, "model": "eft"}, 400, "guidance.beta is inf"),
    ({"guidance": {"num_beams": 5}, "model": "ivg"}, 400, "num_successors is 10; give at most 8"),
    ({"guidance": {"num_beams": 0}, "model": "ivg"}, 400, "num_beams is 0"),
    ({"guidance": {"chunk_length": 0}, "model": "ivg"}, 400, "chunk_length is 0"),
    ({"guidance": {"num_beams": 2**62}, "model": "ivg"}, 400, "give at most 8"),
    ({"guidance": "ivg"}, 400, "guidance is 'ivg'"),
]


@pytest.mark.parametrize(("change", "status", "expected"), COMPLETIONS, ids=lambda value: repr(value)[:40])
def test_completions_that_are_refused(server: Running, change: Any, status: int, expected: str) -> None:
    found, answer = post(server, "/v1/completions", json.dumps({**TEXT, **change}))
    assert found == status, answer
    check(answer, expected)


CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages must be a list of objects"),
    ({"messages": "hi"}, "messages must be a list of objects"),
    ({"messages": [{"role": "user"}]}, "messages must be a list of objects"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "role 'wizard' is none of"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, "nothing to answer"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages must be a list"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a surrogate pair"),
    ({"prompt": "hi"}, "unknown field 'prompt'"),
    ({"tools": [{"type": "function"}]}, "tools .* is not served"),
    ({"response_format": {"type": "json_object"}}, "response_format .* is not served"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "two names of one thing"),
    ({"max_completion_tokens": 0}, "max_tokens is 0; give 1 to 40"),
    ({"top_logprobs": 2}, "top_logprobs goes with logprobs"),
    ({"logprobs": True}, "searches over chunks"),
    ({"echo": True}, "unknown field 'echo'"),
]


@pytest.mark.parametrize(("change", "expected"), CHATS, ids=lambda value: repr(value)[:40])
def test_chats_that_are_refused(server: Running, change: Any, expected: str) -> None:
    status, answer = post(server, "/v1/chat/completions", json.dumps({**CHAT, **change}))
    assert status == 400
    check(answer, expected)


HARMLESS: list[dict[str, Any]] = [
    {"user": "me", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": False},
    {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": None, "top_k": -1},
    {"response_format": {"type": "text"}, "n": 1, "stream": False, "stop": None, "guidance": None},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    {"max_completion_tokens": 5},
    {"guidance": {}},
]


@pytest.mark.parametrize("change", HARMLESS, ids=range(len(HARMLESS)))
def test_what_changes_no_answer_is_let_through(server: Running, change: Any) -> None:
    plain = {**CHAT, "seed": 1, "max_tokens": 5}
    limit = {"max_tokens": None} if "max_completion_tokens" in change else {}
    _, expected = post(server, "/v1/chat/completions", json.dumps(plain))
    status, answer = post(server, "/v1/chat/completions", json.dumps({**plain, **limit, **change}))
    assert status == 200, answer
    assert answer["choices"] == expected["choices"]


def test_paths_and_methods_that_are_not_there(server: Running) -> None:
    status, answer = post(server, "/v1/embeddings", "{}")
    assert status == 404
    check(answer, "there is no '/v1/embeddings' here")
    status, answer = post(server, "/v1/models", "{}")
    assert status == 405
    check(answer, "POST is not for this path")


@pytest.fixture(scope="module")
def guarded(models: dict[str, Any]) -> Iterator[Running]:
    limits = {"api_key": "secret", "max_body_bytes": 1000, "max_tokens": 256}
    with serving({**models, "guidance": PRESETS, "serve": limits}) as running:
        yield running


@pytest.mark.parametrize("key", ["wrong", "secre", "secret1", "s\xe9cret"])
def test_a_wrong_key_is_401(guarded: Running, key: str) -> None:
    status, answer = post(guarded, "/v1/completions", json.dumps(TEXT), Authorization=f"Bearer {key}")
    assert status == 401
    check(answer, "the API key is wrong or missing")


def test_the_key_opens_v1_and_health_needs_none(guarded: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        guarded.client("wrong").models.list()
    status, _ = post(guarded, "/v1/completions", json.dumps(TEXT))
    assert status == 401
    client = guarded.client("secret")
    assert client.completions.create(model="base", prompt="hi", max_tokens=2).choices
    assert [send(guarded, "GET", path)[0] for path in ("/health", "/metrics")] == [200, 200]


def test_large_bodies_are_413_with_and_without_a_length(guarded: Running) -> None:
    body = json.dumps({**TEXT, "prompt": "h" * 1000})
    status, answer = post(guarded, "/v1/completions", body, Authorization="Bearer secret")
    assert status == 413
    check(answer, "more than 1000 bytes")
    pieces = iter([body[:600].encode(), body[600:].encode()])
    status, answer = post(guarded, "/v1/completions", pieces, Authorization="Bearer secret")
    assert status == 413
    check(answer, "more than 1000 bytes")


def check(answer: dict[str, Any], expected: str) -> None:
    message = answer["error"]["message"]
    assert re.search(expected, message), message
    assert "Traceback" not in message
    assert "\n" not in message
    assert len(message) < 300
    assert set(answer["error"]) == {"message", "type", "param", "code"}
