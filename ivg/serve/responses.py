"""OpenAI's answers as JSON, for both kinds of requests, whole and in pieces."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ivg.decoding.sequences import TokenLogProb
from ivg.serve.answers import Answer

Json = dict[str, Any]
Scored = Sequence[tuple[int, TokenLogProb | None]]
_LEAST = -9999.0  # JSON has no minus infinity
_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


def usage(answers: Sequence[Answer], n: int) -> Json:
    """Return the tokens of a request; a prompt with several responses is counted once."""
    prompt = sum(answer.num_prompt_tokens for answer in answers[::n])
    completion = sum(answer.num_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class CompletionFormat:
    """Answers to one request to `/v1/completions`.

    Args:
        model: the preset's name.
        tokenizer: the base's, for the texts of single tokens.
    """

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._head = _head("cmpl", "text_completion", model)
        self._tokenizer = tokenizer

    def whole(self, answers: Sequence[Answer], n: int) -> Json:
        """Return all answers at once."""
        choices = [
            {
                "index": index,
                "text": answer.prompt_text + answer.text,
                "logprobs": None if answer.log_probs is None else self._log_probs(answer.log_probs),
                "finish_reason": _REASONS[answer.finish_reason],
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": usage(answers, n)}

    def opening(self, num_choices: int) -> Iterator[Json]:
        """Yield what comes before any text: nothing."""
        return iter(())

    def piece(self, index: int, text: str) -> Json:
        """Return a piece of a response's text."""
        return self._chunk({"index": index, "text": text, "logprobs": None, "finish_reason": None})

    def end(self, index: int, answer: Answer) -> Json:
        """Return why a response ended."""
        reason = _REASONS[answer.finish_reason]
        return self._chunk({"index": index, "text": "", "logprobs": None, "finish_reason": reason})

    def usage_chunk(self, answers: Sequence[Answer], n: int) -> Json:
        """Return the tokens of the request, which end a stream that was asked for them."""
        return {**self._head, "choices": [], "usage": usage(answers, n)}

    def _chunk(self, choice: Json) -> Json:
        return {**self._head, "choices": [choice]}

    def _log_probs(self, scored: Scored) -> Json:
        texts = [_text(self._tokenizer, token) for token, _ in scored]
        starts = [sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [None if entry is None else _finite(entry.log_prob) for _, entry in scored],
            "top_logprobs": [None if entry is None else self._top(entry) for _, entry in scored],
            "text_offset": starts,
        }

    def _top(self, entry: TokenLogProb) -> Json:
        """Return the most probable tokens by their text, the token itself among them."""
        top: Json = {}
        for token, log_prob in (*entry.top, (entry.id, entry.log_prob)):
            top.setdefault(_text(self._tokenizer, token), _finite(log_prob))  # of equal texts the likelier
        return top


class ChatFormat:
    """Answers to one request to `/v1/chat/completions`.

    Args:
        model: the preset's name.
        tokenizer: the base's, for the texts of single tokens.
    """

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._head = _head("chatcmpl", "chat.completion", model)
        self._tokenizer = tokenizer

    def whole(self, answers: Sequence[Answer], n: int) -> Json:
        """Return all answers at once."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None if answer.log_probs is None else self._log_probs(answer.log_probs),
                "finish_reason": _REASONS[answer.finish_reason],
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": usage(answers, n)}

    def opening(self, num_choices: int) -> Iterator[Json]:
        """Yield what comes before any text: whose turn it is."""
        for index in range(num_choices):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, text: str) -> Json:
        """Return a piece of a response's text."""
        return self._chunk(index, {"content": text}, None)

    def end(self, index: int, answer: Answer) -> Json:
        """Return why a response ended."""
        return self._chunk(index, {}, _REASONS[answer.finish_reason])

    def usage_chunk(self, answers: Sequence[Answer], n: int) -> Json:
        """Return the tokens of the request, which end a stream that was asked for them."""
        return {**self._chunk_head, "choices": [], "usage": usage(answers, n)}

    @property
    def _chunk_head(self) -> Json:
        return {**self._head, "object": "chat.completion.chunk"}

    def _chunk(self, index: int, delta: Json, reason: str | None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._chunk_head, "choices": [choice]}

    def _log_probs(self, scored: Scored) -> Json:
        content = [
            {
                **self._entry(entry.id, entry.log_prob),
                "top_logprobs": [self._entry(token, log_prob) for token, log_prob in entry.top],
            }
            for _, entry in scored
            if entry is not None
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, log_prob: float) -> Json:
        text = _text(self._tokenizer, token)
        return {"token": text, "logprob": _finite(log_prob), "bytes": list(text.encode())}


Format = CompletionFormat | ChatFormat


def _head(prefix: str, kind: str, model: str) -> Json:
    name = f"{prefix}-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False))


def _finite(log_prob: float) -> float:
    return log_prob if math.isfinite(log_prob) else _LEAST
