"""Prompts: rows from files and datasets, and the only door from text to token ids.

Every model sees a prompt in its own template. A prompt row is a mapping with one of `prompt` (text),
`messages` (chat) or `instruction` (AlpacaEval's name, with Alpaca's optional `input` behind it), and
optionally `id`. A conversation may end with an opened answer that is to be gone on with
(`continue_final_message: true`). Fields that would change what a prompt means, but that nothing here reads,
are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ivg.errors import UserError
from ivg.models.chat_template import write_conversation

if TYPE_CHECKING:  # reading records must not wait for transformers
    from transformers import PreTrainedTokenizerBase

Record = Mapping[str, Any]
PROMPT_FIELDS = ("prompt", "messages", "instruction")
ROLES = ("system", "developer", "user", "assistant", "tool")
GOES_ON = "continue_final_message"
# Part of the prompt in other tools; with `instruction` alone `context` is (Dolly's form of `input`).
UNREAD_FIELDS = ("system", "system_prompt", "tools", "documents", "images", "chat_template_kwargs")


def check_row(row: object, where: str) -> dict[str, Any]:
    """Return the row as a dict if it holds a usable prompt.

    Args:
        row: what was read.
        where: file and line, for the error message.

    Raises:
        UserError: not a mapping, no prompt, an empty one, or one of the wrong type.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected a JSON object with a prompt, got a {type(row).__name__}")
    names = [name for name in PROMPT_FIELDS if row.get(name) is not None]
    if len(names) != 1:
        found = " and ".join(names) if names else ", ".join(map(str, row)) or "no fields"
        raise UserError(f"{where}: expected one of {', '.join(PROMPT_FIELDS)}; found {found}")
    name, content = names[0], row[names[0]]
    goes_on = _check_goes_on(row, name, where)
    if name == "messages":
        content = check_messages(content, where, goes_on=goes_on)
    elif not isinstance(content, str) or not content.strip():
        remedy = "; a list of turns goes into 'messages'" if isinstance(content, list) else ""
        raise UserError(f"{where}: {name} must be a non-empty string, got {content!r:.60}{remedy}")
    refuse_unread_fields(row, name, where)
    try:
        given = row.get("input") if name == "instruction" else None
        json.dumps([content, given], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {name!r} holds half a surrogate pair, which is no character"
        ) from error
    if not isinstance(row.get("id"), str | int | None) or isinstance(row.get("id"), bool):
        raise UserError(f"{where}: id must be a string or an integer, got {row['id']!r:.60}")
    return {**row, name: content}


def _check_goes_on(row: Record, name: str, where: str) -> bool:
    """Return whether the row's last turn is an answer to go on with."""
    goes_on = row.get(GOES_ON)
    if goes_on is not None and not isinstance(goes_on, bool):
        raise UserError(f"{where}: {GOES_ON} must be true or false, got {goes_on!r:.60}")
    if goes_on and name != "messages":
        raise UserError(
            f"{where}: {GOES_ON} needs 'messages' whose last turn is the assistant's; found {name!r}"
        )
    return bool(goes_on)


def refuse_unread_fields(row: Record, name: str, where: str) -> None:
    """Refuse fields that are part of the prompt elsewhere and would be left out here without a word."""
    unread = [*UNREAD_FIELDS, *(["context"] if name == "instruction" else [])]
    found = next((field for field in unread if row.get(field)), None)
    if found is not None:
        remedy = "put it into the prompt or a system turn of 'messages', or rename it if it is only a note"
        raise UserError(f"{where}: field {found!r} beside {name!r} would not reach the model; {remedy}")
    if name == "instruction" and not isinstance(row.get("input") or "", str):
        raise UserError(f"{where}: input must be a string, got {row['input']!r:.60}")


def check_messages(content: object, where: str, *, goes_on: bool = False) -> list[dict[str, Any]]:
    """Return a conversation that waits for an answer, text parts joined.

    Args:
        content: the turns.
        where: what to call them in an error message.
        goes_on: the last turn is an answer to go on with.

    Raises:
        UserError: not a list of turns, an unknown role, content that is no text, or nobody to answer.
    """
    if not _are_messages(content):
        raise UserError(
            f"{where}: messages must be a list of objects with 'role' and 'content' strings "
            "(or content as a list of text parts)"
        )
    messages = [{**m, "content": join_text_parts(m["content"])} for m in content]  # type: ignore[attr-defined]
    unknown = next((m["role"] for m in messages if m["role"] not in ROLES), None)
    if unknown is not None:
        raise UserError(f"{where}: role {unknown!r} is none of {', '.join(ROLES)}; rename it")
    is_answered = messages[-1]["role"] == "assistant"
    if is_answered and not goes_on:
        raise UserError(
            f"{where}: messages end with the assistant's turn, so there is nothing to answer; "
            f"remove that turn, end with the user's, or set {GOES_ON}: true to go on with it"
        )
    if goes_on and not (is_answered and messages[-1]["content"].strip()):
        raise UserError(
            f"{where}: {GOES_ON} needs a last turn of the assistant's with some text to go on with; "
            f"it is the {messages[-1]['role']}'s"
        )
    return messages


def _are_messages(content: object) -> bool:
    return (
        isinstance(content, Sequence)
        and len(content) > 0
        and all(
            isinstance(m, Mapping) and isinstance(m.get("role"), str) and is_text(m.get("content"))
            for m in content
        )
    )


def is_text(content: object) -> bool:
    """Tell whether a turn's content is text: a string, or a list of text parts and nothing else."""
    if isinstance(content, str):
        return True
    return (
        isinstance(content, Sequence)
        and len(content) > 0
        and all(
            isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        )
    )


def join_text_parts(content: str | Sequence[Mapping[str, Any]]) -> str:
    """Return a turn's content as one string, which every template can write."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def prompt_text(row: Record) -> str | None:
    """Return the row's prompt as one plain text, or None where it is a conversation of several turns."""
    if row.get("messages") is not None:
        messages = row["messages"]
        return join_text_parts(messages[0]["content"]) if len(messages) == 1 else None
    if row.get("prompt") is not None:
        return str(row["prompt"])
    given = row.get("input")
    return f"{row['instruction']}\n\n{given}" if given else str(row["instruction"])


def messages_of(row: Record) -> list[dict[str, Any]]:
    """Return the row's prompt as a conversation."""
    if row.get("messages") is not None:
        return [{**m, "content": join_text_parts(m["content"])} for m in row["messages"]]
    return [{"role": "user", "content": prompt_text(row)}]


def answered_messages(row: Record, response: str) -> list[dict[str, Any]]:
    """Return the row's conversation with its answer: a turn of its own, or the rest of an opened one."""
    messages = messages_of(row)
    if row.get(GOES_ON):
        return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + response}]
    return [*messages, {"role": "assistant", "content": response}]


def identities(rows: Sequence[Record]) -> list[str]:
    """Give each row its identity: its `id`, else a hash of its content and the occurrence number.

    Raises:
        UserError: two rows carry the same explicit `id`.
    """
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        if row.get("id") is not None:
            name = str(row["id"])
            if seen[name]:
                raise UserError(f"id {name!r} occurs more than once; ids must be unique")
            seen[name] += 1
            ids.append(name)
            continue
        content: Any = next(row[field] for field in PROMPT_FIELDS if row.get(field) is not None)
        if row.get("instruction") is not None:
            content = prompt_text(row)  # Alpaca's input is part of it
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        ids.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return ids


def resolve_template(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Say which template applies: `chat`, or a format string.

    Raises:
        UserError: `chat` was asked for, but the tokenizer has no chat template; or the template does not read
            what it is to be told.
    """
    has_chat = bool(tokenizer.chat_template)
    if template == "chat" and not has_chat:
        raise UserError(
            f"template chat: the tokenizer {tokenizer.name_or_path} has no chat template; "
            "give a format string with '{prompt}'"
        )
    resolved = template or ("chat" if has_chat else "{prompt}")
    for name in chat_template_kwargs or {}:
        if resolved != "chat":
            raise UserError(
                f"chat_template_kwargs {name!r}: a format string reads none; write what it would say into it"
            )
        if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
            raise UserError(
                f"chat_template_kwargs {name!r}: the chat template of {tokenizer.name_or_path} does not read "
                "it; check its name, or leave it out"
            )
    return resolved


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    row: Record,
    template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Turn a prompt row into the ids that one model sees, with at most one BOS and no trailing EOS.

    Args:
        tokenizer: the model's own.
        row: a checked prompt row.
        template: `chat`, a format string with `{prompt}`, or None for the tokenizer's default.
        chat_template_kwargs: what the chat template is told beside the messages.

    Raises:
        UserError: a conversation that the template cannot write, such as several turns in a format string.
    """
    template = resolve_template(tokenizer, template, chat_template_kwargs)
    text = render_prompt(tokenizer, row, template, chat_template_kwargs)
    if template == "chat":
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return encode_text(tokenizer, text)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    row: Record,
    template: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a prompt in a resolved template (see `encode_prompt`)."""
    if template == "chat":
        messages = messages_of(row)
        goes_on = bool(row.get(GOES_ON))
        text = write_conversation(
            tokenizer,
            messages,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            chat_template_kwargs=chat_template_kwargs,
        )
        _refuse_left_out(tokenizer, messages, text)
        return text
    plain = prompt_text(row)
    if plain is None:
        raise UserError(
            f"a conversation of {len(row['messages'])} messages needs a chat template; "
            f"{tokenizer.name_or_path} was given the format string {template!r}"
        )
    # Not str.format: prompts and templates may hold other braces.
    return template.replace("{prompt}", plain)


def _refuse_left_out(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], text: str
) -> None:
    """Refuse a conversation of which the template leaves out a turn of the system or the user.

    Of the assistant's turns, templates leave out thoughts on purpose; what tools say, they may escape.
    """
    for number, message in enumerate(messages, start=1):
        content = str(message["content"] or "").strip()
        if message["role"] in ("system", "developer", "user") and content not in text:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} leaves out message {number} of "
                f"{len(messages)} (role {message['role']!r}); put its text into a turn that it writes"
            )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode text as the opening of a sequence: the tokenizer's own BOS, once, and never its EOS."""
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    opens_with_bos = bos is not None and list(tokenizer(text)["input_ids"])[:1] == [bos]
    return [bos, *plain] if opens_with_bos and plain[:1] != [bos] else plain


def has_double_bos(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Tell whether a prompt opens with two BOS tokens."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(ids[:2]) == [bos, bos]


def as_rows(prompts: Iterable[str | Record]) -> list[dict[str, Any]]:
    """Turn plain strings and mappings into checked prompt rows.

    Raises:
        UserError: one prompt where several belong, or a bad one.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        raise UserError(f"prompts is {prompts!r:.60}; give a list of texts or rows")
    rows: list[object] = [{"prompt": p} if isinstance(p, str) else p for p in prompts]
    return [check_row(row, f"prompt {i + 1}") for i, row in enumerate(rows)]
