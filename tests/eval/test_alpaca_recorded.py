"""The real judge's recorded answers, replayed over loopback: AlpacaEval's own figure must come out."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.eval import scripts
from tests.eval.judge_server import ReplayJudge
from tests.evaluation.alpaca import gamed
from tests.shared_data import SHARED

DATA, TOKENIZERS = SHARED / "alpaca_eval", SHARED / "tokenizers"
SECRET = "sk-very-secret"

needs_recordings = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded AlpacaEval data at {DATA}")


@pytest.fixture(scope="module")
def recordings():
    return json.loads((DATA / "alpaca-7b" / "annotations.json").read_text(encoding="utf-8"))


def replay(rows, **kwargs):
    # Three of the 805 answers equal the reference; those are ties that no judge is asked about.
    by_instruction = {r["instruction"].strip(): r["raw_completion"] for r in rows if r["raw_completion"]}
    return ReplayJudge(by_instruction, **kwargs)


def command(server, folder):
    return [
        sys.executable, str(scripts.ROOT / "eval" / "alpaca.py"), "--yes",
        "--outputs", str(DATA / "alpaca-7b" / "model_outputs.json"),
        "--reference", str(DATA / "gpt4_1106_preview" / "model_outputs.json"),
        "--endpoint", server.url, "--output", str(folder), "--num_workers", "16",
        "--leaderboard", "alpaca-7b",
    ]  # fmt: skip


def environment(cache):
    """Return what the script runs in: its key, and a Hub that cannot be reached."""
    return {**os.environ, "OPENAI_API_KEY": SECRET, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}


def check_figure(folder, recordings):
    report = json.loads((folder / "alpaca.json").read_text())
    arm = report["arms"]["alpaca-7b"]
    assert arm["win_rate"] == pytest.approx(2.5915, abs=5e-5)
    assert arm["win_rate"] == pytest.approx(report["leaderboard"]["alpaca-7b"]["win_rate"])
    assert arm["standard_error"] == pytest.approx(report["leaderboard"]["alpaca-7b"]["standard_error"])
    assert (arm["n_total"], arm["avg_length"]) == (805, 396)
    assert arm["num_null"] == 0
    assert report["not_comparable"] is None
    rows = json.loads((folder / "alpaca-7b" / "annotations.json").read_text())
    assert [r["instruction"] for r in rows] == [r["instruction"] for r in recordings]
    assert [r["preference"] for r in rows] == pytest.approx([r["preference"] for r in recordings])
    return arm


@pytest.mark.slow
@needs_recordings
def test_the_leaderboards_figure_though_a_third_of_the_calls_fails(tmp_path, recordings):
    drawn = gamed.write(tmp_path / "cache")
    with replay(recordings, failures=1 / 3) as server:
        done = subprocess.run(
            command(server, tmp_path / "out"),
            env=environment(tmp_path / "cache"),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert server.refused[429] > 100
    assert server.refused[500] > 100
    assert len(server.answered) == server.answered.total() == 802
    arm = check_figure(tmp_path / "out", recordings)
    # With a stand-in for the Hub's file; the package's own fit has a penalty.
    assert arm["length_controlled_winrate"] == pytest.approx(
        gamed.length_controlled(recordings, drawn), abs=0.2
    )
    assert arm["lc_standard_error"] > 0
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET in text for text in [done.stdout, done.stderr, *written])
    assert f"Bearer {SECRET}" in server.keys_seen


@pytest.mark.slow
@needs_recordings
def test_the_leaderboards_figure_after_a_kill_halfway(tmp_path, recordings):
    with replay(recordings) as server:
        first = subprocess.Popen(
            command(server, tmp_path),
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        server.on_answer = lambda count: count == 400 and first.send_signal(signal.SIGKILL)
        assert first.wait(timeout=300) == -signal.SIGKILL
        before = server.answered.total()
        again = subprocess.run(
            command(server, tmp_path), env=environment(tmp_path), capture_output=True, text=True
        )
    assert again.returncode == 0, again.stderr
    assert 400 <= before < 802
    assert len(server.answered) == 802
    # Only what was in flight at the kill may have been asked twice: at most one call per worker.
    assert max(server.answered.values()) <= 2
    assert server.answered.total() <= 802 + 16
    arm = check_figure(tmp_path, recordings)
    assert arm["length_controlled_winrate"] is None  # its file is not there, and none is made up
    assert "no length-controlled win rate: needs df_gamed.csv" in " ".join(again.stdout.split())


def save_model(folder, model):
    """Save a model with random weights and the Llama-2 vocabulary."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZERS / "llama-2").save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@needs_recordings
@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason=f"no tokenizers at {TOKENIZERS}")
def test_a_recipe_becomes_a_submission(tmp_path):
    """All 805 instructions through tiny models, both arms judged, and the folder for the leaderboard."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, **sizes)
    tuned, untuned, base = (LlamaForCausalLM(config) for _ in range(3))
    recipe = {
        "base": {"path": save_model(tmp_path / "base", base), "template": "[INST] {prompt} [/INST]"},
        "pairs": [
            {
                "tuned": {"path": save_model(tmp_path / "tuned", tuned), "template": "{prompt}"},
                "untuned": {"path": save_model(tmp_path / "untuned", untuned), "template": "{prompt}"},
            }
        ],
        "search": {"token_guidance": "implicit"},
        "sampling": {"max_new_tokens": 3},
        "dataset": {"name": "replaced/by-the-instructions"},
        "output": str(tmp_path / "unused.jsonl"),
    }
    (tmp_path / "decode.yaml").write_text(yaml.safe_dump(recipe))
    reference = json.loads((DATA / "gpt4_1106_preview" / "model_outputs.json").read_text(encoding="utf-8"))
    answers = json.loads((DATA / "alpaca-7b" / "annotations.json").read_text(encoding="utf-8"))
    answer = next(row["raw_completion"] for row in answers if row["raw_completion"])
    with ReplayJudge({row["instruction"].strip(): answer for row in reference}) as server:
        done = subprocess.run(
            [
                sys.executable,
                str(scripts.ROOT / "eval" / "alpaca.py"),
                "--yes",
                "--submission",
                "--decode",
                str(tmp_path / "decode.yaml"),
                "--name",
                "mine",
                "--pretty_name",
                "Mine",
                "--link",
                "https://example.org/mine",
                "--reference",
                str(DATA / "gpt4_1106_preview" / "model_outputs.json"),
                "--endpoint",
                server.url,
                "--output",
                str(tmp_path / "out"),
                "--num_workers",
                "16",
            ],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "out" / "alpaca.json").read_text())
    assert {name: arm["n_total"] for name, arm in report["arms"].items()} == {"mine-base": 805, "mine": 805}
    folder = tmp_path / "out" / "submission"
    outputs = json.loads((folder / "results" / "mine" / "model_outputs.json").read_text())
    assert [row["instruction"] for row in outputs] == [row["instruction"] for row in reference]
    assert {row["generator"] for row in outputs} == {"mine"}
    settings = yaml.safe_load((folder / "models_configs" / "mine" / "configs.yaml").read_text())["mine"]
    assert (settings["pretty_name"], settings["link"]) == ("Mine", "https://example.org/mine")
    template = (folder / "models_configs" / "mine" / "prompt.txt").read_text()
    assert template == "[INST] {instruction} [/INST]"
