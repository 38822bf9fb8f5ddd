"""A judge that is never paid twice: answers are kept as they arrive, failures are waited out.

`alpaca_eval` builds a client per request and takes any class with OpenAI's methods (its `client_configs`).
`JudgeClient` is that class; it hands every request to one `Judge`, which looks it up in an `AnswerCache` on
disk, else asks the endpoint. Only a call that is in flight when the process is killed may be repeated. What
is no answer (`answer_schema.py`) is neither kept nor used, whether it arrives or an earlier version kept it.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import re
import threading
import urllib.parse
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import openai
import tenacity
from openai.types import Completion
from openai.types.chat import ChatCompletion

from ivg.errors import UserError
from ivg.evaluation.alpaca.answer_cache import AnswerCache, request_key
from ivg.evaluation.alpaca.answer_schema import MalformedAnswerError, check_answer, parse_answer
from ivg.evaluation.safe_text import visible

T = TypeVar("T")

TRANSIENT_STATUS = (408, 409, 429)  # and everything from 500 on
# The one refusal that `alpaca_eval` takes for an instruction without an answer, as it should; what says
# "rate " or "Please reduce" it would ask ten times over, and then take for an empty answer too.
SPAM_FILTER = "Please try again with a different prompt."
MAX_WAIT = 60.0  # seconds between two attempts
TIMEOUT = 120.0  # seconds for one attempt, to its last byte
MAX_MALFORMED = 4  # attempts: what is malformed was paid for
SHORTEST_KEY = 8  # characters
# What a refusal with status 403 says where the key is at fault, and not what was asked.
_ABOUT_THE_KEY = re.compile(
    r"\b(api[ _-]?key|key|token|credentials?|unauthori[sz]ed|forbidden|auth\w*)\b|^\W*$", re.IGNORECASE
)
# Refusals of a part of the request, by what servers say, and the option that leaves it out.
_REMEDIES = (
    (
        re.compile(r"log[ _-]?prob", re.IGNORECASE),
        "it gives no log-probabilities: ask with --annotator recipes/judges/without_logprobs --both_orders",
    ),
    (
        re.compile(
            r"max_completion_tokens.* instead|max_tokens\W+(is )?(not supported|unsupported)"
            r"|unsupported (parameter|value)\W+(max_tokens|temperature|top_p)",
            re.IGNORECASE,
        ),
        "it is a reasoning model: ask with --annotator recipes/judges/reasoning --both_orders",
    ),
)
_CLIENTS_OWN = re.compile(r"^Error code: [0-9]+( - )?")
_HOST = re.compile(r"[\w.-]+|[0-9a-f:.%]+")  # a name, or an address of IPv6
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


def check_endpoint(given: str | None) -> str | None:
    """Return the base URL to ask, of a flag or else of the environment; None for OpenAI's own.

    Raises:
        UserError: not a URL that can be asked. It is not repeated, since it may hold a password.
    """
    text = given if given is not None else os.environ.get("OPENAI_BASE_URL") or None
    if text is None:
        return None
    try:
        url = urllib.parse.urlsplit(text)
        is_usable = url.scheme in ("http", "https") and url.port != 0 and not url.query and not url.fragment
        is_usable = is_usable and _HOST.fullmatch(url.hostname or "") is not None
    except ValueError:  # a port that is none, a bracket that is not closed
        is_usable = False
    is_usable = is_usable and text.isprintable() and " " not in text
    if not is_usable:
        raise UserError("endpoint is no URL that can be asked; give one such as http://localhost:8000/v1")
    return text


def shown_endpoint(client: openai.OpenAI) -> str:
    """Return a client's base URL for people and files: without user and password."""
    return str(client.base_url.copy_with(username=None, password=None))


class Answers(Protocol):
    """What can answer a request: a `Judge`, or the `Plan` of one."""

    def answer(self, kind: str, request: dict[str, Any], *, repeat: int = 0) -> dict[str, Any]:
        """Answer a request of kind `chat` or `text` with the endpoint's JSON.

        Args:
            kind: `chat` or `text`.
            request: what is asked.
            repeat: tells apart several askings of one request, whose answers are kept side by side.
        """


class Again:
    """Asks what was asked before anew, instead of taking the kept answer.

    Args:
        answers: who answers.
        repeat: number of this asking, from 1.
    """

    def __init__(self, answers: Answers, repeat: int) -> None:
        self._answers, self._repeat = answers, repeat

    def answer(self, kind: str, request: dict[str, Any], *, repeat: int = 0) -> dict[str, Any]:
        """Answer a request as asked for this time."""
        return self._answers.answer(kind, request, repeat=self._repeat + repeat)


class Plan:
    """Answers nothing new: counts the requests that an evaluation would have to pay for."""

    def __init__(self, endpoint: str, cache: AnswerCache) -> None:
        self.endpoint, self.cache = endpoint, cache
        self.num_kept = 0
        self.open_requests: dict[str, dict[str, Any]] = {}

    def answer(self, kind: str, request: dict[str, Any], *, repeat: int = 0) -> dict[str, Any]:
        """Return the kept answer, or an empty one that parses to no preference."""
        key = request_key(self.endpoint, kind, request, repeat)
        kept = _look_up(self.cache, key, kind, request)
        if kept is not None:
            self.num_kept += 1
            return kept
        self.open_requests[key] = request
        message = {"role": "assistant", "content": ""}
        return {"choices": [{"index": 0, "message": message, "text": ""}], "usage": {"total_tokens": 0}}

    @property
    def num_characters(self) -> int:
        """Length of all open requests' prompts."""
        return sum(len(json.dumps(r.get("messages", r.get("prompt")))) for r in self.open_requests.values())


def _look_up(cache: AnswerCache, key: str, kind: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return a kept answer, if it is one; earlier versions kept whatever came."""
    kept = cache.get(key)
    try:
        return None if kept is None else check_answer(kind, request, kept)
    except MalformedAnswerError:
        return None


class Judge:
    """Asks an OpenAI-compatible endpoint, with back-off, and keeps every answer.

    Args:
        client: its own retries must be off.
        cache: where answers are kept.
        patience: seconds after which a call that keeps failing ends the evaluation.
        timeout: seconds for one attempt, however slowly its answer drips in.
    """

    def __init__(
        self, client: openai.OpenAI, cache: AnswerCache, *, patience: float, timeout: float = TIMEOUT
    ) -> None:
        self.client, self.cache, self.timeout = client, cache, timeout
        self.endpoint = shown_endpoint(client)
        self._secrets = _secrets_of(client)
        self.num_asked = 0
        self._stopped = threading.Event()
        self._reason = "the evaluation was stopped; run it again to go on where it was"
        self._key_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        waited_enough = tenacity.stop_after_delay(patience)
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=_wait,
            stop=lambda state: waited_enough(state) or _malformed_too_often(state),
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )

    def stop(self) -> None:
        """Let no further request out; calls that wait for their next attempt give up."""
        self._stopped.set()

    def answer(self, kind: str, request: dict[str, Any], *, repeat: int = 0) -> dict[str, Any]:
        """Return the kept answer to a request, or ask and keep it.

        Raises:
            UserError: the endpoint cannot be used; every later request is refused at once.
            openai.BadRequestError: a spam filter holds back this request alone.
        """
        key = request_key(self.endpoint, kind, request, repeat)
        with self._key_locks[key]:
            kept = _look_up(self.cache, key, kind, request)
            if kept is not None:
                return kept
            try:
                answer = self._retrying.copy()(self._ask, kind, request)
            except (openai.OpenAIError, MalformedAnswerError, TimeoutError) as error:
                if isinstance(error, openai.BadRequestError) and SPAM_FILTER in str(error):
                    raise
                model = str(request.get("model"))
                raise self._give_up(explain(error, self.endpoint, model, self._blot_out)) from error
            try:
                self.cache.put(key, answer)
            except OSError as error:  # what cannot be kept would be paid for again
                reason = (
                    f"{self.cache.path}: {error.strerror}; make room, and run again to go on where it was"
                )
                raise self._give_up(reason) from error
            self.num_asked += 1
            return answer

    def _give_up(self, reason: str) -> UserError:
        self._reason = reason
        self.stop()
        return UserError(reason)

    def _blot_out(self, text: str) -> str:
        """Blot out key and password, which a server may quote."""
        for secret in self._secrets:
            text = text.replace(secret, "<key>")
        return text

    def _ask(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        if self._stopped.is_set():
            raise UserError(self._reason)
        methods = self.client.chat.completions if kind == "chat" else self.client.completions
        body = _call_within(self.timeout, lambda: methods.with_raw_response.create(**request).content)
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise MalformedAnswerError("a malformed answer: not UTF-8 text") from error
        return parse_answer(kind, request, self._blot_out(text))


def _secrets_of(client: openai.OpenAI) -> list[str]:
    """Return what must not be shown or kept: the key, the endpoint's password, and how both are sent.

    A key shorter than `SHORTEST_KEY`, as for a server at home, is none.
    """
    url = client.base_url
    found = [client.api_key] if len(client.api_key) >= SHORTEST_KEY else []
    if url.password:
        pair = f"{url.username}:{url.password}"
        found += [base64.b64encode(pair.encode()).decode(), urllib.parse.quote(url.password), url.password]
    return found


def _call_within(seconds: float, call: Callable[[], T]) -> T:
    """Call, and wait so long for the result that a server cannot drag it out byte by byte.

    A call that takes longer is left to its thread, which ends with the process at the latest.

    Raises:
        TimeoutError: no result within that time.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return outcome.result(timeout=seconds)
    except TimeoutError as error:
        if outcome.done():  # the call's own
            raise
        raise TimeoutError(f"no whole answer within {seconds:g} s") from error


def _malformed_too_often(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return isinstance(error, MalformedAnswerError) and state.attempt_number >= MAX_MALFORMED


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        out_of_money = error.code == "insufficient_quota"
        return not out_of_money and (error.status_code in TRANSIENT_STATUS or error.status_code >= 500)
    return isinstance(error, openai.APIConnectionError | MalformedAnswerError | TimeoutError)


def _wait(state: tenacity.RetryCallState) -> float:
    """Wait as long as the server asks for, else a random time that doubles with each attempt."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, openai.APIStatusError):
        asked = error.response.headers.get("retry-after", "")
        if _SECONDS.fullmatch(asked):
            return min(float(asked), MAX_WAIT)
    return tenacity.wait_random_exponential(multiplier=1, max=MAX_WAIT)(state)


def explain(error: Exception, endpoint: str, model: str, blot_out: Callable[[str], str]) -> str:
    """Say in one line why a judge cannot be used, and which option helps.

    Args:
        error: what the last attempt ended in.
        endpoint: the judge's URL, as it may be shown.
        model: the judge model.
        blot_out: takes secrets out of what the server said.
    """
    others = "choose another with --judge_model or --annotator (then not comparable with the leaderboard)"
    living = (
        "an open-weights judge lasts (--annotator recipes/judges/open_weights), but win rates of two judges "
        "differ by points: measure yours with `ivg eval judge`"
    )
    if isinstance(error, openai.APIStatusError):
        code, status = str(error.code), f"status {error.status_code}"
        said = visible(blot_out(" ".join(_server_message(error).split())))[:300]
        # OpenAI says 404, or 403 to those who never had it; others say 400. The code tells.
        remedy = next((way for refusal, way in _REMEDIES if refusal.search(said)), None)
        if remedy is not None and error.status_code in (400, 403, 422):
            return f"judge {model!r} at {endpoint} refuses a request ({status}: {said}); {remedy}"
        is_gone = error.status_code in (404, 410) or (error.status_code in (400, 403) and "model" in code)
        if is_gone:
            return (
                f"judge at {endpoint} does not offer {model!r} ({status}); {others}, or another --endpoint; "
                f"{living}"
            )
        if error.status_code == 401 or (error.status_code == 403 and _ABOUT_THE_KEY.search(said)):
            return f"judge at {endpoint} refused the key ({status}); check the key and its rights"
        if code == "insufficient_quota":
            return f"judge at {endpoint}: the account has no credit left; top it up and run again to go on"
        if not _is_transient(error):
            return f"judge {model!r} at {endpoint} refuses a request ({status}: {said}); {others}"
    else:
        status = visible(blot_out(str(error)))[:300]
    return f"judge at {endpoint} kept failing ({status}); answers so far are kept, run again to go on"


def _server_message(error: openai.APIStatusError) -> str:
    """Return what the server said of its refusal; it may send anything there, or nothing."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else body
    return said if isinstance(said, str) else _CLIENTS_OWN.sub("", error.message)


class JudgeClient:
    """Looks like `openai.OpenAI` to `alpaca_eval`: `chat.completions.create` and `completions.create`."""

    def __init__(self, answers: Answers) -> None:
        self.chat = _Chat(answers)
        self.completions = _Completions(answers)


class _Chat:
    def __init__(self, answers: Answers) -> None:
        self.completions = _ChatCompletions(answers)


class _ChatCompletions:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def create(self, **request: Any) -> ChatCompletion:
        return ChatCompletion.construct(**self._answers.answer("chat", request))


class _Completions:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def create(self, **request: Any) -> Completion:
        return Completion.construct(**self._answers.answer("text", request))
