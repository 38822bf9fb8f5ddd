"""The dry run's figure for a CPU is what a run then takes at its peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ivg.config import DecodeConfig, ModelConfig, PairConfig, SamplingConfig, SearchConfig
from ivg.config.models import Dtype
from ivg.run.dry_run import examine_run
from tests import tiny

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from ivg.run.cli import main
assert main(sys.argv[1:]) == 0
# Not ru_maxrss, which a process inherits from the one that starts it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""
LIBRARIES = 400 * 2**20  # this process holds more than a run: pytest, and what other tests imported


def _model(folder: Path, seed: int) -> str:
    """48 million weights, of which a tied output layer is a third."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    ends = {"bos_token_id": None, "eos_token_id": len(tiny.LETTERS), "pad_token_id": len(tiny.LETTERS) + 1}
    config = LlamaConfig(vocab_size=30_000, tie_word_embeddings=True, **shape, **ends)
    return tiny.save(folder, LlamaForCausalLM(config))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_estimate_is_within_a_quarter_of_the_peak(tmp_path: Path, dtype: Dtype) -> None:
    base, tuned, untuned = (
        ModelConfig(path=_model(tmp_path / name, seed), dtype=dtype, device="cpu")
        for seed, name in enumerate(("base", "tuned", "untuned"))
    )
    prompts = [{"prompt": "hello there, what a day. " * 3, "id": i} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    config = DecodeConfig(
        base=base,
        pairs=(PairConfig(tuned=tuned, untuned=untuned),),
        search=SearchConfig(token_guidance="implicit"),
        sampling=SamplingConfig(max_new_tokens=24),
        max_batch_rows=8,
    )
    report = examine_run(config, prompts)
    assert report.process_bytes > 0
    expected = report.weight_bytes + report.cache_bytes + report.score_bytes + LIBRARIES
    flags = ["--base", base.path, "--tuned", tuned.path, "--untuned", untuned.path, "--dtype", dtype]
    flags += ["--device", "cpu", "--token_guidance", "implicit", "--max_new_tokens", "24"]
    flags += ["--max_batch_rows", "8", "--input", str(tmp_path / "prompts.jsonl")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *flags, "--output", str(tmp_path / "out.jsonl")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    peak = int(done.stdout.splitlines()[-1]) * 1024
    assert expected == pytest.approx(peak, rel=0.25), (report, peak)
