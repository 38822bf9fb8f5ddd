"""Put data, script and style into one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ivg.evaluation.safe_text import visible

TITLE_LENGTH = 160  # characters
FOLDER = Path(__file__).parent
PAGE_OPENING = (  # as in page.html.jinja
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="generator" content="ivg view">'
)


def html(source: str, responses: Sequence[Mapping[str, Any]]) -> str:
    """Return the page: no request to anywhere, and a policy that lets nothing run but its own script.

    Args:
        source: name of the trace file.
        responses: what `response_data` returned of each row.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    style, script = (_read(name) for name in ("viewer.css", "viewer.js"))
    return environment.get_template("page.html.jinja").render(
        source=visible(source),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        # One block for each response, which the script parses when it is shown: the page opens at once.
        responses=[
            {"title": title(response), "value": final_value(response), "data": embed(response)}
            for response in responses
        ],
    )


def title(response: Mapping[str, Any]) -> str:
    """Return what the list of responses calls one: its prompt's opening, or what else is known."""
    if "error" in response:
        text = f"refused: {response['error']}"
    else:
        text = response["prompt"] or f"id {response['id']}"
    return " ".join(text.split())[:TITLE_LENGTH]


def final_value(response: Mapping[str, Any]) -> float | str:
    """Return the answer's value; nothing where candidates were not ranked."""
    chunks = response.get("chunks", [])
    is_ranked = any(len(candidates) > 1 for candidates in chunks)
    return float(chunks[-1][0]["value"]) if is_ranked else ""


def embed(data: object) -> Markup:
    """Write JSON that can stand inside a script element.

    It is plain ASCII, and `<`, `>` and `&` are written as escapes, so that no text ends the element or opens
    a comment in it.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the hash by which a content security policy names an element's text."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
