"""`ivg eval reproducibility --engine vllm`: what changes nothing in float32, and that the cache was warm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from ivg.engines.vllm.engine import VllmEngine
from tests.eval.scripts import load

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


def test_batch_cache_and_order_change_nothing_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = load("reproducibility")
    monkeypatch.setattr(command, "BASE", (2, 64))
    monkeypatch.setattr(command, "GUIDE", (1, 64))
    cached, close = [], VllmEngine.close

    def note_and_close(engine: VllmEngine) -> None:
        cached.append(engine.cache_use.cached)
        close(engine)

    monkeypatch.setattr(VllmEngine, "close", note_and_close)
    sizes = ["--rows", "1", "4", "--num_prompts", "4", "--max_new_tokens", "8", "--longest_prompt", "80"]
    output = tmp_path / "out.json"
    command.main(["--engine", "vllm", "--dtypes", "float32", *sizes, "--output", str(output)])
    found = json.loads(output.read_text())["results"]["float32"]
    equal = {"identical": 1.0, "flips_per_draw": 0.0}
    assert found == {
        "batch size": {**equal, "n": 4},
        "cache warm": {**equal, "n": 8},
        "order, cache warm": {**equal, "n": 8},
    }
    # Of a prompt of 33 tokens or more a block of 32 is found the second and the third time.
    assert min(cached) >= 2 * 32
