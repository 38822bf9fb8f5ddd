"""Every error line that docs/troubleshooting.md quotes is one that the program can print."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from ivg.config.yaml_file import config_from_dict
from ivg.errors import UserError
from ivg.models.folders import require_folders
from ivg.run.command_line import parse
from ivg.run.input_files import read_input, refuse_bad_records, source_name
from tests.docs.pages import DOCS, ROOT, fenced

PAGE = DOCS / "troubleshooting.md"
QUOTED = [block.text.strip() for block in fenced(PAGE) if block.text.startswith("error: ")]
MIN_LITERAL = 0.3  # share of a line that the source must spell out


@functools.cache
def messages() -> list[tuple[re.Pattern[str], int]]:
    """Return every text of the package as a pattern, with the number of characters that it spells out."""
    found = []
    for path in (ROOT / "ivg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            pattern = "".join(".*" if part is None else re.escape(str(part)) for part in parts)
            found.append((re.compile(pattern), sum(len(str(part)) for part in parts if part is not None)))
    return found


@pytest.mark.parametrize("line", QUOTED, ids=lambda line: line[7:50])
def test_the_program_has_this_message(line: str) -> None:
    assert "\n" not in line
    message = line.removeprefix("error: ")
    assert any(
        pattern.fullmatch(message) for pattern, literal in messages() if literal >= MIN_LITERAL * len(message)
    )


def test_the_page_quotes_what_it_should() -> None:
    assert len(QUOTED) >= 20
    assert len(QUOTED) == len(set(QUOTED))


PAIR = {"pairs": [{"tuned": "t", "untuned": "u"}]}
BEAMS = {"chunk_guidance": "implicit", "num_beams": 4, "num_successors": 4}
CONFIGURATIONS = [
    {"serach": {}},
    {"search": {"token_guidance": "implicit"}},
    {"search": {**BEAMS, "chunk_guidance": "none"}},
    {"search": {**BEAMS, "num_beams": 1}, "sampling": {"temperature": 0}, **PAIR},
    {"search": BEAMS, "max_batch_rows": 8, **PAIR},
]


@pytest.mark.parametrize("keys", CONFIGURATIONS, ids=lambda keys: "-".join(keys))
def test_configurations_are_refused_in_these_words(keys: dict[str, object]) -> None:
    with pytest.raises(UserError) as refused:
        config_from_dict({"base": "b", **keys})
    assert f"error: {refused.value}" in QUOTED


@pytest.mark.parametrize("base", ["./models/mine", "model.gguf"])
def test_models_are_refused_in_these_words(base: str) -> None:
    config = config_from_dict({"base": base})
    with pytest.raises(UserError) as refused:
        require_folders(config.base, config.pairs, config.values)
    assert f"error: {refused.value}" in QUOTED


def test_prompts_and_flags_are_refused_in_these_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"text": "c"}\n')
    with pytest.raises(UserError) as refused:
        refuse_bad_records(read_input("prompts.jsonl", None), source_name("prompts.jsonl", None))
    assert f"error: {refused.value}" in QUOTED
    Path("run.yaml").write_text("base: b\nsampling: {seed: 0}\n")
    with pytest.raises(UserError) as refused:
        parse(["--config", "run.yaml", "--seed", "1"])
    assert f"error: {refused.value}" in QUOTED
