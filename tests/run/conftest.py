"""Tiny models on disk, shared by the command-line tests."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests import tiny


class Folders(NamedTuple):
    root: Path
    base: str
    tuned: str
    untuned: str
    value: str
    scalar: str
    narrow_value: str
    other_vocabulary: str


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("models")
    num_ids = len(tiny.LETTERS) + 2
    shuffled = tiny.tokenizer(tiny.LETTERS[::-1])
    return Folders(
        root,
        tiny.save(root / "base", tiny.causal(0)),
        tiny.save(root / "tuned", tiny.causal(1)),
        tiny.save(root / "untuned", tiny.causal(2)),
        tiny.save(root / "value", tiny.value(3, num_labels=num_ids)),
        tiny.save(root / "scalar", tiny.value(4, num_labels=1)),
        tiny.save(root / "narrow", tiny.value(5, num_labels=num_ids - 3)),
        tiny.save(root / "other", tiny.causal(6), shuffled),
    )
