"""Two ranks, on a CPU each, give what lockstep gives: greedy ids, and the values of what was kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from ivg.run import cli
from tests.engines.vllm.test_decode import ROOT, folder, read_lines, write_config

__all__ = ["folder"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks want two CPUs")
def test_two_ranks_decode_what_lockstep_does(folder: Path) -> None:
    config = write_config(
        folder,
        "two_ranks",
        search={"token_guidance": "implicit", "chunk_guidance": "explicit", "chunk_length": 6},
        sampling={"temperature": 0.0, "max_new_tokens": 24},
        return_token_ids=True,
        return_beams=True,
        limit=24,
    )
    expected, found = folder / "one.jsonl", folder / "two.jsonl"
    assert cli.main(["--config", config, "--output", str(expected)]) == 0
    cpus = sorted(os.sched_getaffinity(0))[:2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ivg.run.cli", "--config", config, "--output", str(found)),
            *("--engine", "vllm", "vllm.tensor_parallel_size=2", f"vllm.kv_cache_memory_bytes={2**28}"),
        ],
        cwd=ROOT,
        # By itself vLLM gives each rank a NUMA node, and refuses where there are fewer.
        env=os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, cpus))},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ones, twos = read_lines(expected), read_lines(found)
    assert [line["token_ids"] for line in twos] == [line["token_ids"] for line in ones]
    values = [[line["beams"][0]["value"] for line in lines] for lines in (ones, twos)]
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    assert len(set(values[0])) > 12
