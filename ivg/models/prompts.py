"""Prompts: rows from files and datasets, and the only door from text to token ids.

Every model sees a prompt in its own template. A prompt row is a mapping with one of `prompt` (text),
`messages` (chat) or `instruction` (AlpacaEval's name), and optionally `id`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ivg.errors import UserError

if TYPE_CHECKING:  # reading records must not wait for transformers
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
PROMPT_FIELDS = ("prompt", "messages", "instruction")


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
    content = row[names[0]]
    if names[0] == "messages":
        if not _are_messages(content):
            raise UserError(f"{where}: messages must be a list of objects with 'role' and 'content' strings")
    elif not isinstance(content, str) or not content.strip():
        raise UserError(f"{where}: {names[0]} must be a non-empty string, got {content!r:.60}")
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {names[0]!r} holds half a surrogate pair, which is no character"
        ) from error
    if not isinstance(row.get("id"), str | int | None) or isinstance(row.get("id"), bool):
        raise UserError(f"{where}: id must be a string or an integer, got {row['id']!r:.60}")
    return dict(row)


def _are_messages(content: object) -> bool:
    return (
        isinstance(content, Sequence)
        and len(content) > 0
        and all(
            isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in content
        )
    )


def prompt_text(row: Row) -> str | None:
    """Return the row's prompt as one plain text, or None where it is a conversation of several turns."""
    if row.get("messages") is not None:
        messages = row["messages"]
        return str(messages[0]["content"]) if len(messages) == 1 else None
    return str(row["prompt"] if row.get("prompt") is not None else row["instruction"])


def identities(rows: Sequence[Row]) -> list[str]:
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
        content = next(row[field] for field in PROMPT_FIELDS if row.get(field) is not None)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        ids.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return ids


def resolve_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """Say which template applies: `chat`, or a format string.

    Raises:
        UserError: `chat` was asked for, but the tokenizer has no chat template.
    """
    has_chat = bool(tokenizer.chat_template)
    if template == "chat" and not has_chat:
        raise UserError(
            f"template chat: the tokenizer {tokenizer.name_or_path} has no chat template; "
            "give a format string with '{prompt}'"
        )
    return template or ("chat" if has_chat else "{prompt}")


def encode_prompt(tokenizer: PreTrainedTokenizerBase, row: Row, template: str | None = None) -> list[int]:
    """Turn a prompt row into the ids that one model sees, with at most one BOS and no trailing EOS.

    Args:
        tokenizer: the model's own.
        row: a checked prompt row.
        template: `chat`, a format string with `{prompt}`, or None for the tokenizer's default.

    Raises:
        UserError: a conversation that the template cannot write, such as several turns in a format string.
    """
    template = resolve_template(tokenizer, template)
    text = render_prompt(tokenizer, row, template)
    if template == "chat":
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return encode_text(tokenizer, text)


def render_prompt(tokenizer: PreTrainedTokenizerBase, row: Row, template: str) -> str:
    """Return the text of a prompt in a resolved template (see `encode_prompt`)."""
    if template == "chat":
        messages = row.get("messages") or [{"role": "user", "content": prompt_text(row)}]
        try:
            text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} refuses the messages: {error}"
            ) from error
        return str(text)
    plain = prompt_text(row)
    if plain is None:
        raise UserError(
            f"a conversation of {len(row['messages'])} messages needs a chat template; "
            f"{tokenizer.name_or_path} was given the format string {template!r}"
        )
    # Not str.format: prompts and templates may hold other braces.
    return template.replace("{prompt}", plain)


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


def as_rows(prompts: Iterable[str | Row]) -> list[dict[str, Any]]:
    """Turn plain strings and mappings into checked prompt rows.

    Raises:
        UserError: one prompt where several belong, or a bad one.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        raise UserError(f"prompts is {prompts!r:.60}; give a list of texts or rows")
    rows: list[object] = [{"prompt": p} if isinstance(p, str) else p for p in prompts]
    return [check_row(row, f"prompt {i + 1}") for i, row in enumerate(rows)]
