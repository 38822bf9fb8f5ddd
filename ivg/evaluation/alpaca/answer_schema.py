"""What an answer of a judge must look like before it is kept or used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from ivg.errors import UserError
from ivg.evaluation.reading import parse_json


class MalformedAnswerError(RuntimeError):
    """The endpoint said that all is well, but sent nothing that is an answer."""


_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")


class _Part(pydantic.BaseModel):
    """Takes no text for a number, no NaN, and drops fields that nothing reads."""

    model_config = pydantic.ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _TopLogprob(_Part):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _TokenLogprob(_TopLogprob):
    top_logprobs: list[_TopLogprob] | None = None


class _Logprobs(_Part):
    content: list[_TokenLogprob] | None = None


class _Function(_Part):
    name: str = ""
    arguments: str


class _ToolCall(_Part):
    id: str = ""
    type: Literal["function"] = "function"
    function: _Function


class _Message(_Part):
    role: Literal["assistant"] = "assistant"
    content: str | None
    function_call: _Function | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(_Part):
    index: int = 0
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"] | None = None

    @pydantic.field_validator("finish_reason", mode="before")
    @classmethod
    def _take_other_reasons(cls, reason: object) -> object:
        """Servers at home have reasons of their own, and nothing here depends on them."""
        return "stop" if isinstance(reason, str) and reason not in _REASONS else reason


class _ChatChoice(_Choice):
    message: _Message
    logprobs: _Logprobs | None = None


class _TextChoice(_Choice):
    text: str


class _Usage(_Part):
    total_tokens: int = pydantic.Field(default=0, ge=0)


class _Answer(_Part):
    model: str | None = None
    usage: _Usage | None = None  # some servers leave it out


class _ChatAnswer(_Answer):
    choices: list[_ChatChoice]


class _TextAnswer(_Answer):
    choices: list[_TextChoice]


def check_answer(kind: str, request: Mapping[str, Any], data: object) -> dict[str, Any]:
    """Return what is used of an answer.

    Args:
        kind: `chat` or `text`.
        request: what was asked: there is one choice for each of its prompts.
        data: the endpoint's JSON.

    Raises:
        MalformedAnswerError: a field of it is missing or of another type, or there are more or fewer choices.
    """
    model: type[_ChatAnswer | _TextAnswer] = _ChatAnswer if kind == "chat" else _TextAnswer
    if isinstance(data, Mapping) and data.get("choices") == []:
        raise MalformedAnswerError("an answer without choices")
    try:
        answer = model.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise MalformedAnswerError(f"a malformed answer: {place}: {first['msg']}") from error
    prompt = request.get("prompt")
    wanted = len(prompt) if kind == "text" and isinstance(prompt, list | tuple) else 1
    if len(answer.choices) != wanted:
        raise MalformedAnswerError(f"a malformed answer: {len(answer.choices)} choices instead of {wanted}")
    answer.usage = answer.usage or _Usage()  # alpaca_eval relies on it
    return answer.model_dump(mode="json")


def parse_answer(kind: str, request: Mapping[str, Any], body: str) -> dict[str, Any]:
    """Read an answer's body (see `check_answer`).

    Raises:
        MalformedAnswerError: it is not JSON, or not an answer.
    """
    try:
        data = parse_json(body, "the body", "JSON")
    except UserError as error:
        raise MalformedAnswerError(f"a malformed answer: {error}") from error
    return check_answer(kind, request, data)
