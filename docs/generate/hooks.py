"""What mkdocs calls while it builds the site: pages from outside `docs/`, and generated parts of pages.

A page asks for a generated part in a line of its own, such as

    <!-- generate: keys ivg.config.SearchConfig -->

so that what the program knows of itself (keys, defaults, ranges, flags, verbs) is written once.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for `docs.generate` and, where it is not installed, `ivg`
# What libraries say of themselves when the training and evaluation scripts import them.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")

from docs.generate.commands import (  # noqa: E402
    evaluation_keys,
    evaluations,
    flags,
    other_verbs,
    stages,
    training_keys,
    verbs,
)
from docs.generate.keys import keys  # noqa: E402

# Files outside of docs/ that are pages too.
PAGES_OUTSIDE = ("BENCHMARKS.md", "CHANGELOG.md", "notebooks/README.md", "recipes/smollm2/README.md")
GENERATORS: dict[str, Callable[..., str]] = {
    "keys": keys,
    "training-keys": training_keys,
    "evaluation-keys": evaluation_keys,
    "flags": flags,
    "verbs": verbs,
    "stages": stages,
    "evaluations": evaluations,
    "other-verbs": other_verbs,
}
_ASKED = re.compile(r"^<!-- generate: ([\w-]+)((?: [\w.-]+)*) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside `docs/`."""
    for name in PAGES_OUTSIDE:
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put in the parts that a page asks for; who searches for a key wants its page, not its history."""
    if page.file.src_uri == "CHANGELOG.md":
        page.meta["search"] = {"exclude": True}
    return fill_in(markdown)


def fill_in(markdown: str) -> str:
    """Replace every line that asks for a generated part.

    Raises:
        KeyError: no generator has that name.
    """
    return _ASKED.sub(lambda asked: GENERATORS[asked[1]](*asked[2].split()), markdown)
