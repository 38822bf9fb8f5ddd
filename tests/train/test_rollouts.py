"""Rollouts: samples of distinct prompts, labelled, the same however many processes share them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.train.launching import letters, run_here, write_config, write_rows


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, object]:
    prompts = [{"prompt": "ab"}, {"prompt": "c"}, {"prompt": "ab"}, {"prompt": "dd e"}]
    return {
        "model_name_or_path": tiny.save(tmp_path / "policy", tiny.causal(0, dtype=torch.float32)),
        "dataset_name": write_rows(tmp_path / "prompts.jsonl", prompts),
        "reward_function": "tests.train.launching.letters",
        "max_new_tokens": 8,
        "num_samples": 4,
        "block_size": 2,
        "output_dir": str(tmp_path / "out"),
    }


def silent_on_short(rows: Sequence[Any], responses: Sequence[str]) -> list[float | None]:
    """Reward: the length, and no score for what is shorter than four characters."""
    return [float(len(text)) if len(text) >= 4 else None for text in responses]


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_completions_and_pairs(
    tmp_path: Path, keys: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here("rollouts", write_config(tmp_path / "c.yaml", **keys), monkeypatch)
    rows = _read(tmp_path / "out" / "completions.jsonl")
    # The second "ab" is the same prompt: three distinct ones.
    assert {row["prompt"] for row in rows} == {"ab", "c", "dd e"}
    assert len({(row["id"], row["sample"]) for row in rows}) == len(rows)
    assert [row["reward"] for row in rows] == letters([], [row["completion"] for row in rows])
    facts = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert (facts["num_prompts"], facts["num_samples"]) == (3, 12)
    by_prompt = {p: [row for row in rows if row["prompt"] == p] for p in ("ab", "c", "dd e")}
    for pair in _read(tmp_path / "out" / "preferences.jsonl"):
        rewards = [row["reward"] for row in by_prompt[pair["prompt"]]]
        assert letters([], [pair["chosen"], pair["rejected"]]) == [max(rewards), min(rewards)]


def test_blocks_do_not_depend_on_how_prompts_are_cut_among_processes(
    tmp_path: Path, keys: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here("rollouts", write_config(tmp_path / "c.yaml", **keys), monkeypatch)
    blocks = sorted((tmp_path / "out" / "samples").iterdir())
    assert [len(_read(block)) for block in blocks] == [8, 4]
    first = blocks[0].read_bytes()
    # As if another process had only done the second block.
    blocks[0].unlink()
    second = blocks[1].stat().st_mtime_ns
    run_here("rollouts", str(tmp_path / "c.yaml"), monkeypatch)
    assert blocks[0].read_bytes() == first
    assert blocks[1].stat().st_mtime_ns == second


def test_other_prompts_under_the_same_name_are_another_run(
    tmp_path: Path,
    keys: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path / "c.yaml", **keys)
    run_here("rollouts", config, monkeypatch)
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "b"}, {"prompt": "c"}, {"prompt": "dd e"}])
    with pytest.raises(SystemExit):
        run_here("rollouts", config, monkeypatch)
    assert "holds a run with other settings (dataset_name_sha256)" in capsys.readouterr().err
    run_here("rollouts", config, monkeypatch, "--overwrite_output")
    assert {row["prompt"] for row in _read(tmp_path / "out" / "completions.jsonl")} == {"b", "c", "dd e"}


def test_prompts_that_do_not_fit_are_found_before_any_is_sampled(
    tmp_path: Path,
    keys: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c" * 60}]
    keys |= {"dataset_name": write_rows(tmp_path / "long.jsonl", prompts), "block_size": 1}
    with pytest.raises(SystemExit):
        run_here("rollouts", write_config(tmp_path / "c.yaml", **keys), monkeypatch)
    assert "1 of 3 distinct prompts cannot be answered; the first, 'cccc" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_samples_without_a_score_are_null_and_counted(
    tmp_path: Path, keys: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys["reward_function"] = "tests.train.test_rollouts.silent_on_short"
    run_here("rollouts", write_config(tmp_path / "c.yaml", **keys), monkeypatch)
    samples = [row for block in (tmp_path / "out" / "samples").iterdir() for row in _read(block)]
    num_short = sum(len(row["completion"]) < 4 for row in samples)
    assert sum(row["reward"] is None for row in samples) == num_short
    facts = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert facts["num_without_reward"] == num_short
    assert all(row["reward"] >= 4 for row in _read(tmp_path / "out" / "completions.jsonl"))
    assert 0 < num_short < len(samples)
