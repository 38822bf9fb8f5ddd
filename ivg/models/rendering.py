"""What a model reads of a response, in training and in decoding alike: the one place that decides it.

Two kinds of models read responses, and each has one form for them.

*Models that follow a response token by token* (language models, value heads) see the prompt as decoding gives
it, the generation prompt included, then the response as it stands, then the one token that closes the turn in
their own template. Nothing may stand before or inside the response that is not there while it is sampled.

*Models that judge a finished response* (sequence classifiers) see the whole conversation as their template
writes it, with whatever it puts around the answer and after it: what published reward models were trained on,
and what TRL's reward trainer feeds.

They differ for Qwen3 (an empty thought before the answer), Qwen3.5 and DeepSeek-R1-distill (an opened one in
the generation prompt), Gemma 3 and Phi-3 (text behind the closing token).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ivg.errors import UserError, readable
from ivg.models.chat_template import write_conversation
from ivg.models.prompts import (
    Record,
    answered_messages,
    encode_prompt,
    encode_text,
    render_prompt,
    resolve_template,
)

PROMPT_FORMAT = "prompt_format.json"
_PROBE = "vXqzj"  # an answer that no template writes on its own
_EXAMPLE = {"prompt": "Hello"}


class Renderer:
    """Turns prompts and responses into one model's ids.

    Args:
        tokenizer: the model's own.
        template: `chat`, a format string with `{prompt}`, or None for the tokenizer's default.
        chat_template_kwargs: what the chat template is told beside the messages, such as `enable_thinking`.

    Raises:
        UserError: the template cannot be used, or fails.

    Attributes:
        tokenizer: the model's own.
        template: `chat` or a format string.
        chat_template_kwargs: what the chat template is told.
        end_id: closes a response: the first special token behind an answer in the chat template, else the
            tokenizer's EOS; None where there is neither.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = resolve_template(tokenizer, template, chat_template_kwargs)
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._closing = self._find_closing() if self.template == "chat" else ""
        closing_ids = self._encode(self._closing)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self.end_id: int | None = next((i for i in closing_ids if i in special), tokenizer.eos_token_id)

    @property
    def is_encoder(self) -> bool:
        """Whether the tokenizer closes texts with a separator of its own."""
        return self.tokenizer.cls_token_id is not None and not self.tokenizer.chat_template

    def require_end(self, name: str, *, judges: bool = False) -> None:
        """Refuse a model for which a finished response looks like one that goes on.

        Args:
            name: what to call the model in the message.
            judges: it is a classifier, whose chat template or separators do without such a token.

        Raises:
            UserError: it has no token that closes a response.
        """
        if self.end_id is None and not (judges and (self.template == "chat" or self.is_encoder)):
            raise UserError(
                f"{name}: neither its chat template nor its tokenizer has a token that ends a response, "
                "so a finished one cannot be told from one that goes on; give the tokenizer an eos_token"
            )

    def prompt_ids(self, row: Record) -> list[int]:
        """Return the prompt as decoding feeds it."""
        return encode_prompt(self.tokenizer, row, self.template, self.chat_template_kwargs)

    def prompt_text(self, row: Record) -> str:
        """Return the text that `prompt_ids` encodes."""
        return render_prompt(self.tokenizer, row, self.template, self.chat_template_kwargs)

    def response_ids(self, response: str, *, is_ended: bool) -> list[int]:
        """Return a response's ids for a model that follows it token by token.

        Args:
            response: its text, without EOS and without a stop string.
            is_ended: it came to an end, by EOS or stop string; one that was cut at a length did not.
        """
        ids = self._encode(response)
        if not is_ended:
            return ids
        self.require_end(self.tokenizer.name_or_path)
        assert self.end_id is not None
        return [*ids, self.end_id]

    def judged_ids(self, row: Record, response: str, *, is_ended: bool = True) -> list[int]:
        """Return the ids of prompt and response for a model that judges them as a whole.

        Args:
            row: the prompt.
            response: its text.
            is_ended: it came to an end, so that the turn is closed.
        """
        if self.template == "chat":
            text = self._write(answered_messages(row, response))
            return self._encode(text if is_ended else text.removesuffix(self._closing))
        text = self.prompt_text(row) + response
        if self.is_encoder:
            return list(self.tokenizer(text)["input_ids"])
        ids = encode_text(self.tokenizer, text)
        eos = self.tokenizer.eos_token_id
        return [*ids, eos] if is_ended and eos is not None else ids

    def describe(self) -> dict[str, Any]:
        """Return what is kept beside a trained model, to be compared when it is used (`check_format`)."""
        source = self.tokenizer.chat_template if self.template == "chat" else self.template
        end = None if self.end_id is None else self.tokenizer.convert_ids_to_tokens(self.end_id)
        meaning: dict[str, Any] = {
            "source": source,
            "chat_template_kwargs": self.chat_template_kwargs,
            "end": end,
        }
        return {
            "template": self.template,
            "chat_template_kwargs": self.chat_template_kwargs,
            "end": end,
            "example": self.prompt_text(_EXAMPLE),
            "fingerprint": hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16],
        }

    def _find_closing(self) -> str:
        """Return what the chat template writes behind an answer."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        text = self._write(messages)
        _, found, closing = text.rpartition(_PROBE)
        return closing if found else ""

    def _write(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return a finished conversation as the chat template writes it."""
        return write_conversation(
            self.tokenizer,
            messages,
            add_generation_prompt=False,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def write_format(folder: Path, description: Mapping[str, Any]) -> None:
    """Write down beside a trained model how its prompts were rendered (`Renderer.describe`)."""
    text = json.dumps(description, indent=2, ensure_ascii=False)
    (folder / PROMPT_FORMAT).write_text(text + "\n", encoding="utf-8")


def check_format(
    folder: str,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to use a model with another template than it was trained with.

    Args:
        folder: where the model lies; a Hub name, or a folder of other makers, has nothing to compare.
        name: what to call the model.
        tokenizer: the model's own.
        template: the one it is to be used with.
        chat_template_kwargs: what that is to be told.

    Raises:
        UserError: naming an example prompt as training rendered it, and as it would be rendered now.
    """
    file = Path(folder) / PROMPT_FORMAT
    if not file.is_file():
        return
    with readable(f"{name}: {PROMPT_FORMAT} is not readable"):
        trained = json.loads(file.read_text("utf-8"))
        fingerprint, example, end = (str(trained[key]) for key in ("fingerprint", "example", "end"))
    now = Renderer(tokenizer, template, chat_template_kwargs).describe()
    if now["fingerprint"] == fingerprint:
        return
    told = trained.get("chat_template_kwargs") or {}
    with_kwargs = "" if told == now["chat_template_kwargs"] else f" and its chat_template_kwargs to {told!r}"
    raise UserError(
        f"{name}: was trained on prompts such as {example!r}, closed by {end!r}, but its template now gives "
        f"{now['example']!r}, closed by {now['end']!r}; set its template to {trained.get('template')!r}"
        f"{with_kwargs}, with the tokenizer that lies beside it, or remove {file.name} from its folder"
    )
