"""The pages of the documentation, and what stands in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Pages that are read elsewhere too, where blocks are indented.
OUTSIDE = [ROOT / name for name in ("README.md", "notebooks/README.md", "recipes/smollm2/README.md")]

_FENCED = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:(?:^ {4}.*)\n+)+", re.MULTILINE)


class Snippet(NamedTuple):
    """A block of code.

    Attributes:
        page: where it stands.
        number: among the page's blocks, from 1.
        language: `python`, `yaml`, `bash` or `text`.
        title: the name of a file that it shows, or empty.
        text: the code.
    """

    page: Path
    number: int
    language: str
    title: str
    text: str

    @property
    def name(self) -> str:
        """Where to find it."""
        return f"{self.page.relative_to(ROOT)}-{self.number}"


def fenced(page: Path) -> list[Snippet]:
    """Return the fenced blocks of a page."""
    found = _FENCED.findall(page.read_text(encoding="utf-8"))
    return [Snippet(page, i + 1, *block) for i, block in enumerate(found)]


def indented(page: Path) -> list[Snippet]:
    """Return the indented blocks of a page, which are commands."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    blocks = [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in _INDENTED.findall(text)]
    return [Snippet(page, 101 + i, "bash", "", block) for i, block in enumerate(blocks)]


def snippets(language: str) -> list[Snippet]:
    """Return every block in a language, of all pages and of the files outside that show commands."""
    every = [block for page in (*PAGES, *OUTSIDE) for block in fenced(page)]
    every += [block for page in OUTSIDE for block in indented(page)]
    return [block for block in every if block.language == language]


def table(page: Path, first_cell: str) -> list[dict[str, str]]:
    """Return the rows of the table whose header opens with this cell, by column."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    header = next(line for line in lines if line.startswith(f"| {first_cell} |"))
    next(lines)
    names = _cells(header)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, _cells(line), strict=True)))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
