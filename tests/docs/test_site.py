"""The site is built so that what is broken stops the build, and so that it needs nothing from elsewhere."""

from __future__ import annotations

import re

from docs.generate.hooks import PAGES_OUTSIDE
from tests.docs.pages import DOCS, PAGES, ROOT

CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_the_build_is_strict() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    command = next(line for line in makefile.splitlines() if "mkdocs build" in line)
    assert "--strict" in command
    assert "--quiet" not in command  # mkdocs counts no warnings then
    assert "make docs" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "anchors: warn" in CONFIG


def test_every_page_is_in_the_menu() -> None:
    listed = re.findall(r"[\w/-]+\.md", CONFIG.partition("\nnav:")[2])
    assert {*PAGES_OUTSIDE} < {*listed}
    assert sorted({*listed} - {*PAGES_OUTSIDE}) == [str(page.relative_to(DOCS)) for page in PAGES]
    assert len(listed) == len({*listed})


def test_nothing_is_loaded_from_elsewhere() -> None:
    ours = [CONFIG, *((DOCS / "assets" / name).read_text() for name in ("site.css", "iframe-worker.js"))]
    assert not [url for text in ours for url in re.findall(r"https?://\S+", text)]
    assert "font: false" in CONFIG
    assert "iframe-worker.js" in CONFIG  # the offline plugin would take one from a server
