"""`make bench-engines`: vLLM's arms do the work of lockstep's, and count what the prefix cache held."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from ivg.evaluation.benchmark.model_folders import inspect_folders, save_models
from tests.eval.scripts import load
from tests.evaluation.benchmark.test_engines import workload

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


def test_vllm_s_arms_run_to_the_last_token(tmp_path: Path) -> None:
    bench = load("bench_engines")
    work = dataclasses.replace(workload("gpt2", heads=1), prompt_lengths=(70, 70), new_tokens=9)
    save_models(work, tmp_path)
    infos = inspect_folders(tmp_path, "float32")
    found = {
        (guidance, arm): bench.run_arm(bench.Case(work, guidance, 2), arm, infos)
        for guidance, arm in (("token", bench.VLLM), ("ivg", bench.VLLM), ("ivg", bench.UNGUIDED))
    }
    assert all(result["seconds"] > 0 for result in found.values())
    # Three chunks of three tokens for four rows of two prompts; two blocks of 32 of 70 tokens can be found.
    search = found["ivg", bench.VLLM]
    assert search["requests"] == 2 * 4 * 3
    read, once = 2 * 4 * (70 + 73 + 76), 2 * 70
    cached = search["prefix_cache_hit_rate"] * read
    assert cached == pytest.approx(64 * (2 * 4 * 3 - 1), abs=64)
    assert search["recomputed_tokens_per_request"] == pytest.approx((read - cached - once) / 24)
    # Nothing of a response is found, as no block of 32 is full: for each prompt, three samples find its own.
    token = found["token", bench.VLLM]
    assert token["requests"] == 2 * 4
    assert token["prefix_cache_hit_rate"] == pytest.approx(64 * 7 / (8 * 70), abs=64 / 560)
