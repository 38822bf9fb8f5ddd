"""OpenAI's request bodies, read strictly: what would change an answer and is not served is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ivg.config.yaml_file import nearest

MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 32

# Notes for the caller's own books, which change no answer.
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls"),
    }
)
# What is not served, and the values under which it changes nothing.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}


class ApiError(Exception):
    """What a client is told in place of an answer.

    Args:
        status: of HTTP.
        message: one sentence.
        code: OpenAI's word for it, where it has one.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())
        self.code = code

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON."""
        kinds = {401: "authentication_error", 404: "not_found_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


class GuidanceBody(BaseModel):
    """What of its preset a request wants otherwise."""

    model_config = ConfigDict(extra="forbid", strict=True)

    beta: float | None = None
    num_beams: int | None = None
    num_successors: int | None = None
    chunk_length: int | None = None


class StreamOptions(BaseModel):
    """What is streamed beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Body(BaseModel):
    """What both kinds of requests have in common."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model: str
    guidance: GuidanceBody | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=_MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionBody(Body):
    """A request to `/v1/completions`."""

    prompt: Any
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class ChatBody(Body):
    """A request to `/v1/chat/completions`."""

    messages: Any
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


def refuse_unserved(body: Body) -> None:
    """Refuse fields that this server does not know, or that ask for something it does not do.

    Raises:
        ApiError: 400.
    """
    for name, value in (body.model_extra or {}).items():
        if name in IGNORED:
            continue
        if name not in NEUTRAL:
            raise ApiError(400, f"unknown field {name[:60]!r}; {nearest(name[:60], type(body).model_fields)}")
        if value not in NEUTRAL[name]:
            raise ApiError(400, f"{name} {value!r:.60} is not served; leave it out")


def validation_message(errors: Sequence[Any]) -> str:
    """Say in one sentence what is wrong with a body, from pydantic's list."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body" and not _is_type_name(part))
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}"
    if not where:
        return "the body is no JSON object; send one, with Content-Type: application/json"
    if first["type"] == "missing":
        return f"{where} is missing; give it"
    if first["type"] == "extra_forbidden":
        return f"unknown field {where!r:.80}; leave it out"
    given = first.get("input")
    message = str(first["msg"])
    return f"{where} is {given!r:.60}: {message[:1].lower()}{message[1:]}"


def _is_type_name(part: object) -> bool:
    """Tell the branch of a union, which pydantic names like a field."""
    return part in ("str", "int", "float", "list[str]") or str(part).startswith(("list[", "constrained-"))


def read_prompts(prompt: object) -> list[str | list[int]]:
    """Return the prompts of a completion: one text, several, one list of token ids, or several.

    Raises:
        ApiError: 400.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(part, str) for part in prompt):
            return list(prompt)
        if all(_is_id(part) for part in prompt):
            return [list(prompt)]
        if all(isinstance(part, list) and part and all(map(_is_id, part)) for part in prompt):
            return [list(part) for part in prompt]
    raise ApiError(
        400,
        f"prompt is {prompt!r:.60}; give a text, a list of texts, a list of token ids, or a list of those",
    )


def _is_id(part: object) -> bool:
    return isinstance(part, int) and not isinstance(part, bool)
