"""Conversations written by a model's chat template, which is a program from whoever published the model.

Whatever it does (raise, or never end) becomes one line for the user.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ivg.errors import UserError, first_line

if TYPE_CHECKING:  # reading records must not wait for transformers
    from transformers import PreTrainedTokenizerBase

TIME_LIMIT = 10.0  # seconds for one conversation
# What expressions inside a template can raise, beside jinja's own.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _TimeIsUpError(BaseException):
    """Raised inside a template that does not end; no handler in it may catch this."""


def write_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    time_limit: float = TIME_LIMIT,
) -> str:
    """Return the text that the tokenizer's chat template makes of a conversation.

    Args:
        tokenizer: has a chat template.
        messages: turns of `role` and `content`.
        add_generation_prompt: open the assistant's turn.
        continue_final_message: end inside the last turn, so that what follows goes on with it.
        chat_template_kwargs: what the template is told beside the messages, such as `enable_thinking`.
        time_limit: in seconds.

    Raises:
        UserError: the template refuses the messages, fails, or does not end in time.
    """
    written: list[str] = []
    faults: list[BaseException] = []

    def write() -> None:
        try:
            text = tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **(chat_template_kwargs or {}),
            )
            written.append(str(text))
        except (TemplateError, _TimeIsUpError, *_FAULTS) as error:
            faults.append(error)

    # A thread, because nothing else can be stopped wherever it is called from: signals reach the main
    # thread alone, and belong to whoever embeds us.
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(time_limit)
    name = f"the chat template of {tokenizer.name_or_path}"
    if thread.is_alive():
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeIsUpError)
        )
        raise UserError(f"{name} has not ended after {time_limit:g} s; mend it, or give a format string")
    if faults:
        fault = faults[0]
        if isinstance(fault, TemplateError):
            raise UserError(f"{name} refuses the messages: {first_line(fault)}") from fault
        raise UserError(
            f"{name} fails on the messages: {type(fault).__name__}: {first_line(fault)}"
        ) from fault
    return written[0]
