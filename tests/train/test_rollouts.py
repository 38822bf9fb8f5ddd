"""Rollouts: samples of distinct prompts, labelled, the same however many processes share them."""

import json
from pathlib import Path

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
