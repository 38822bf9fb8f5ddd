"""A judge that is never paid twice: answers are kept as they arrive, failures are waited out.

`alpaca_eval` builds a client per request and takes any class with OpenAI's methods (its `client_configs`).
`JudgeClient` is that class; it hands every request to one `Judge`, which looks it up in an `AnswerCache` on
disk, else asks the endpoint. Only a call that is in flight when the process is killed may be repeated.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from typing import Any, Protocol

import openai
import tenacity
from openai.types import Completion
from openai.types.chat import ChatCompletion

from ivg.errors import UserError
from ivg.evaluation.alpaca.answer_cache import AnswerCache, request_key

TRANSIENT_STATUS = (408, 409, 429)  # and everything from 500 on
# The one refusal that `alpaca_eval` takes for an instruction without an answer, as it should; what says
# "rate " or "Please reduce" it would ask ten times over, and then take for an empty answer too.
SPAM_FILTER = "Please try again with a different prompt."
MAX_WAIT = 60.0  # seconds between two attempts
TIMEOUT = 120.0  # seconds for one attempt
SHORTEST_KEY = 8  # characters


class Answers(Protocol):
    """What can answer a request: a `Judge`, or the `Plan` of one."""

    def answer(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of kind `chat` or `text` with the endpoint's JSON."""


class Plan:
    """Answers nothing new: counts the requests that an evaluation would have to pay for."""

    def __init__(self, endpoint: str, cache: AnswerCache) -> None:
        self.endpoint, self.cache = endpoint, cache
        self.num_kept = 0
        self.open_requests: dict[str, dict[str, Any]] = {}

    def answer(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the kept answer, or an empty one that parses to no preference."""
        key = request_key(self.endpoint, kind, request)
        kept = self.cache.get(key)
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


class Judge:
    """Asks an OpenAI-compatible endpoint, with back-off, and keeps every answer.

    Args:
        client: its own retries must be off.
        cache: where answers are kept.
        patience: seconds after which a call that keeps failing ends the evaluation.
    """

    def __init__(self, client: openai.OpenAI, cache: AnswerCache, *, patience: float) -> None:
        self.client, self.cache = client, cache
        self.endpoint = str(client.base_url)
        self.num_asked = 0
        self._stopped = threading.Event()
        self._reason = "the evaluation was stopped; run it again to go on where it was"
        self._key_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=_wait,
            stop=tenacity.stop_after_delay(patience),
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )

    def stop(self) -> None:
        """Let no further request out; calls that wait for their next attempt give up."""
        self._stopped.set()

    def answer(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the kept answer to a request, or ask and keep it.

        Raises:
            UserError: the endpoint cannot be used; every later request is refused at once.
            openai.BadRequestError: a spam filter holds back this request alone.
        """
        key = request_key(self.endpoint, kind, request)
        with self._key_locks[key]:
            kept = self.cache.get(key)
            if kept is not None:
                return kept
            try:
                answer = self._retrying.copy()(self._ask, kind, request)
            except (openai.OpenAIError, EmptyAnswerError) as error:
                if isinstance(error, openai.BadRequestError) and SPAM_FILTER in str(error):
                    raise
                self._reason = self._without_key(explain(error, self.endpoint, str(request.get("model"))))
                self.stop()
                raise UserError(self._reason) from error
            self.cache.put(key, answer)
            self.num_asked += 1
            return answer

    def _without_key(self, reason: str) -> str:
        """Blot out the key, which a server may quote; what is shorter, as for a server at home, is none."""
        key = self.client.api_key
        return reason if len(key) < SHORTEST_KEY else reason.replace(key, "<key>")

    def _ask(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        if self._stopped.is_set():
            raise UserError(self._reason)
        methods = self.client.chat.completions if kind == "chat" else self.client.completions
        answer: dict[str, Any] = methods.create(**request).model_dump(mode="json")
        if not answer.get("choices"):
            raise EmptyAnswerError("an answer without choices")
        if not answer.get("usage"):  # some servers leave it out, alpaca_eval relies on it
            answer["usage"] = {"total_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0}
        return answer


class EmptyAnswerError(RuntimeError):
    """The endpoint said 200 but sent nothing that is an answer."""


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        out_of_money = error.code == "insufficient_quota"
        return not out_of_money and (error.status_code in TRANSIENT_STATUS or error.status_code >= 500)
    return isinstance(error, openai.APIConnectionError | EmptyAnswerError)


def _wait(state: tenacity.RetryCallState) -> float:
    """Wait as long as the server asks for, else a random time that doubles with each attempt."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, openai.APIStatusError):
        asked = error.response.headers.get("retry-after", "")
        if asked.replace(".", "", 1).isdigit():
            return min(float(asked), MAX_WAIT)
    return tenacity.wait_random_exponential(multiplier=1, max=MAX_WAIT)(state)


def explain(error: Exception, endpoint: str, model: str) -> str:
    """Say in one line why a judge cannot be used, and which option helps."""
    others = "choose another with --judge_model or --annotator (then not comparable with the leaderboard)"
    if isinstance(error, openai.APIStatusError):
        code, status = str(error.code), f"status {error.status_code}"
        # OpenAI says 404, or 403 to those who never had it; others say 400. The code tells.
        if error.status_code == 404 or "model" in code:
            return f"judge at {endpoint} does not offer {model!r} ({status}); {others}, or another --endpoint"
        if error.status_code in (401, 403):
            return f"judge at {endpoint} refused the key ({status}); check the key and its rights"
        if code == "insufficient_quota":
            return f"judge at {endpoint}: the account has no credit left; top it up and run again to go on"
        if not _is_transient(error):
            return f"judge {model!r} at {endpoint} refuses a request ({status}: {error.message}); {others}"
    else:
        status = str(error)
    return f"judge at {endpoint} kept failing ({status}); answers so far are kept, run again to go on"


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
