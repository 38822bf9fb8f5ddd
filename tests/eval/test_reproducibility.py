"""How many responses stay the same: counted by hand, and on small models that differ nowhere in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.eval.scripts import load, refused

reproducibility = load("reproducibility")


def test_what_differs_is_counted() -> None:
    runs = [[(1, 2, 3), (4, 5)], [(1, 2, 3), (4, 6)], [(1, 9, 3), (4, 5)]]
    # Six pairs of responses, of which two are equal; the others differ in their second draw.
    found = reproducibility.compare(runs)
    assert found == pytest.approx({"identical": 2 / 6, "flips_per_draw": 4 / 13, "n": 6})
    both = reproducibility.compare_all([(runs[0], runs[0]), (runs[0], runs[1])])
    assert both == {"identical": 3 / 4, "flips_per_draw": 1 / 10, "n": 4}


def test_the_batch_size_changes_nothing_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducibility, "BASE", (2, 64))
    monkeypatch.setattr(reproducibility, "GUIDE", (1, 64))
    sizes = ["--rows", "1", "4", "--num_prompts", "4", "--max_new_tokens", "6"]
    reproducibility.main(["--dtypes", "float64", *sizes, "--output", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert found == {"float64": {"batch size": {"identical": 1.0, "flips_per_draw": 0.0, "n": 4}}}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--engine", "tgi"], "engine is 'tgi'; give one of lockstep, vllm"),
        (["--engine", "vllm"], "dtypes holds float64, which vLLM does not compute in"),
        (["--rows", "8"], "rows is [8]; give at least two numbers"),
        (["--longest_prompt", "3"], "longest_prompt is [3]; give integers from 4 to 511"),
        (["--longest_prompt", "500"], "max_new_tokens is [50]; give integers from 1 to 12"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, reproducibility.main, argv)
