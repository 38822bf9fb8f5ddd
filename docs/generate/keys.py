"""Tables of configuration keys: name, type, default, range and effect, all taken from the dataclasses."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import griffe

from docs.generate.ranges import accepted

_WORDS: dict[object, str] = {
    str: "text",
    Path: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    types.NoneType: "null",
}


class Key(NamedTuple):
    """A configuration key as the reference shows it.

    Attributes:
        name: in YAML.
        kind: its type, in words.
        default: as YAML writes it, or in words.
        range: which values of that type are taken; empty where all are.
        effect: what it does.
    """

    name: str
    kind: str
    default: str
    range: str
    effect: str


def keys(*dotted: str) -> str:
    """Return a section with a table for each dataclass, named by module and class."""
    return "\n\n".join(_section(find_class(name)) for name in dotted)


def find_class(dotted: str) -> type:
    """Import a class by its dotted name."""
    module, _, name = dotted.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    return found


def _section(cls: type) -> str:
    table = table_of_keys(keys_of(cls))
    first_line = (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
    return f'<a id="{anchor(cls)}"></a>\n\n{first_line}\n\n{table}'


def anchor(cls: type) -> str:
    """Return where other tables find this class's."""
    return cls.__name__.lower()


def table_of_keys(rows: list[Key]) -> str:
    """Write keys as a Markdown table, marked for the style sheet."""
    lines = [
        '<div class="keys" markdown>',
        "",
        "| key | type | default | range | effect |",
        "|---|---|---|---|---|",
    ]
    for key in rows:
        cells = (f"`{key.name}`", key.kind, key.default, key.range, key.effect.rstrip("."))
        lines.append(f"| {' | '.join(map(as_cell, cells))} |")
    return "\n".join([*lines, "", "</div>"])


def as_cell(text: str) -> str:
    """Write plain text so that a table's cell shows all of it: bars, and braces that would be attributes."""
    return re.sub(r"(?<!`)(\{[^{}]*\})(?!`)", r"`\1`", text).replace("|", "\\|")


def keys_of(cls: type, try_value: Callable[[str, object], None] | None = None) -> list[Key]:
    """Return the keys that this project declares in a dataclass; those of a foreign base class are left out.

    Args:
        cls: the dataclass.
        try_value: builds it with one value and raises a `UserError` where that is refused; None: its
            constructor does.
    """
    hints = typing.get_type_hints(cls)
    described = effects(cls)
    return [
        Key(
            name=field.name,
            kind=describe(hints[field.name]),
            default=_default(field),
            range=accepted(cls, field.name, hints[field.name], try_value),
            effect=described[field.name],
        )
        for field in own_fields(cls)
    ]


def own_fields(cls: type) -> Iterator[dataclasses.Field[Any]]:
    """Yield the fields that a user may set and that were declared in this project."""
    declared = {
        name
        for base in cls.__mro__
        if not base.__module__.startswith(("trl.", "transformers."))
        for name in inspect.get_annotations(base)
    }
    for field in dataclasses.fields(cls):
        if field.init and field.name in declared:
            yield field


def effects(cls: type) -> Mapping[str, str]:
    """Return what each field of a dataclass does, from its `help` or from its class's docstring.

    Raises:
        KeyError: a field is described in neither.
    """
    docstring = griffe.Docstring(inspect.getdoc(cls) or "", parser="google")
    sections = [part.value for part in docstring.parse(warnings=False) if part.kind.value == "attributes"]
    listed = {entry.name: entry.description.replace("\n", " ") for part in sections for entry in part}
    found = {}
    for field in own_fields(cls):
        text = field.metadata.get("help") or listed.get(field.name)
        if not text:
            raise KeyError(f"{cls.__module__}.{cls.__qualname__}.{field.name} says nowhere what it does")
        found[field.name] = text
    return found


def describe(hint: Any) -> str:
    """Say in words which values a type takes."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (types.UnionType, typing.Union):
        # null is the default of every such key, and shows there.
        return " or ".join(describe(one) for one in arguments if one is not types.NoneType)
    if origin in (list, tuple):
        return f"list of {describe(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return "keys with values"
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return f"[{hint.__name__}](#{anchor(hint)})"
    raise TypeError(f"no words for {hint!r}")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return "must be given"
    if dataclasses.is_dataclass(value):
        return "the defaults of its keys"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(_write, value))}]`"
    return f"`{_write(value)}`"


def _write(value: object) -> str:
    """Write a value as YAML does."""
    words = {None: "null", True: "true", False: "false", "": '""'}
    if value is None or isinstance(value, bool) or value == "":
        return words[value]  # type: ignore[index]
    return str(value)
