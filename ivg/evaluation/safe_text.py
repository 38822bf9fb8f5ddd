"""Texts that models, judges and users wrote, made fit for a terminal and for Markdown."""

from __future__ import annotations

import re
import unicodedata

from rich.console import Console

# Control characters (which a terminal would obey), characters that turn the direction of a line, halves of
# surrogate pairs (which cannot be written).
_UNSEEN = ("Cc", "Cf", "Cs")
_KEPT = "\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}\N{SOFT HYPHEN}"


def visible(text: str) -> str:
    r"""Return a text with its control characters written out, such as `\x1b`; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSEEN and character not in _KEPT
        else character
        for character in text
    )


def plain_markdown(text: str) -> str:
    """Return a text for one line of Markdown in which nothing is HTML, a link or an image.

    A backslash in front of punctuation is doubled first, so that none of the text's own undoes ours.
    """
    line = " ".join(visible(text).split())
    line = re.sub(r"\\(?=[!-/:-@[-`{-~])", r"\\\\", line)
    line = re.sub(r"<(?=[A-Za-z/!?])", r"\\<", line)
    return line.replace("](", r"]\(").replace("][", r"]\[")


def say(console: Console, text: str) -> None:
    """Print a line as it is: `[/b]` in a path is no markup, and an escape moves no cursor."""
    console.print(visible(text), markup=False, emoji=False, highlight=False)
