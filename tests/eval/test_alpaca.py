"""The real judge's recorded answers, replayed over loopback: AlpacaEval's own figure must come out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ivg.config_file import config_from_dict, read_yaml
from ivg.evaluation.alpaca import leaderboard
from ivg.evaluation.annotators import OFFICIAL_ANNOTATOR
from ivg.evaluation.options import parse_options
from tests.eval import scripts
from tests.eval.judge_server import ReplayJudge
from tests.evaluation import gamed, tiny

SHARED = Path(os.environ.get("IVG_SHARED_DATA", scripts.ROOT.parent / "shared" / "data"))
DATA, TOKENIZERS = SHARED / "alpaca_eval", SHARED / "tokenizers"
SECRET = "sk-very-secret"

alpaca = scripts.load("alpaca")
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


NAMES = ["one", "two", "three"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Three instructions, answered with log-probabilities that mean 80% for the second answer shown."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tops = [
        {"token": "m", "bytes": None, "logprob": -1.6094379},
        {"token": "M", "bytes": None, "logprob": -0.2231436},
    ]
    content = [{**tops[1], "top_logprobs": tops}]
    choice = {
        "index": 0, "finish_reason": "length", "logprobs": {"content": content},
        "message": {"role": "assistant", "content": "M"},
    }  # fmt: skip
    for name in ("reference", "mine"):
        rows = [{"instruction": n, "output": f"{name} {n}", "generator": name} for n in NAMES]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    with ReplayJudge(dict.fromkeys(NAMES, choice)) as server:
        yield tmp_path, server


def arguments(small, *more):
    folder, server = small
    return [
        "--outputs", str(folder / "mine.json"), "--reference", str(folder / "reference.json"),
        "--endpoint", server.url, "--output", str(folder / "out"), *more,
    ]  # fmt: skip


def test_a_small_run_says_what_it_costs_and_what_it_is_worth(small, capsys):
    alpaca.main(arguments(small, "--yes", "--price", "2.5", "--judge_model", "small-judge"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 judge calls to small-judge at http://127.0.0.1" in printed
    assert "about $0.00" in printed
    assert (
        "Not comparable with the public leaderboard: judge weighted_alpaca_eval_gpt4_turbo-small-judge"
        in printed
    )
    report = json.loads((small[0] / "out" / "alpaca.json").read_text())
    preferences = {r["preference"] for r in json.loads((small[0] / "out/mine/annotations.json").read_text())}
    assert {round(p, 3) for p in preferences} <= {1.2, 1.8}  # the order in which answers are shown varies
    assert report["arms"]["mine"]["n_total"] == 3


def test_a_finished_run_asks_nothing_and_needs_no_key(small, monkeypatch, capsys):
    alpaca.main(arguments(small, "--yes"))
    monkeypatch.delenv("OPENAI_API_KEY")
    alpaca.main(arguments(small))
    assert small[1].answered.total() == 3
    assert "0 judge calls" in capsys.readouterr().out


def test_nulls_of_the_judge_are_counted_and_shown(small, capsys):
    recording = dict(small[1].recordings["two"])
    small[1].recordings["two"] = {**recording, "logprobs": None}
    alpaca.main(arguments(small, "--yes"))
    arm = json.loads((small[0] / "out" / "alpaca.json").read_text())["arms"]["mine"]
    assert (arm["n_total"], arm["num_instructions"]) == (2, 3)
    assert arm["num_null"] == 1
    assert "mine: 1 of 3 without a preference" in " ".join(capsys.readouterr().out.split())


def test_nothing_is_spent_without_consent(small, capsys):
    assert "add --yes to agree" in scripts.refused(capsys, alpaca.main, arguments(small))
    assert small[1].answered.total() == 0


@pytest.mark.parametrize("status", [404, 403])
def test_a_retired_judge_names_the_option(small, capsys, status):
    message = "The model `gpt-4-1106-preview` does not exist or you do not have access to it."
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": "model_not_found"}
    small[1].refuse_all = (status, {"error": body})
    error = scripts.refused(capsys, alpaca.main, arguments(small, "--yes"))
    said = f"does not offer 'gpt-4-1106-preview' (status {status}); choose another with --judge_model"
    assert said in error


def test_a_request_that_a_spam_filter_holds_back_is_counted(small, capsys):
    small[1].refusals["two"] = (400, {"error": {"message": "Please try again with a different prompt."}})
    alpaca.main(arguments(small, "--yes"))
    arm = json.loads((small[0] / "out" / "alpaca.json").read_text())["arms"]["mine"]
    assert (arm["n_total"], arm["num_instructions"]) == (2, 3)
    assert arm["num_null"] == 1
    assert "mine: 1 of 3 without a preference" in " ".join(capsys.readouterr().out.split())


def test_bad_input_is_one_line_and_exit_code_2(small, monkeypatch, capsys):
    folder, _ = small
    good = arguments(small, "--yes")
    (folder / "short.json").write_text(json.dumps(json.loads((folder / "mine.json").read_text())[1:]))
    cases = {
        "no output folder": ["--outputs", "x.json"],
        "give either --decode": ["--output", str(folder)],
        "1 of the reference's 3 instructions are missing": [*good, "--outputs", str(folder / "short.json")],
        "name the same generator": [*good, "--outputs", *[str(folder / "mine.json")] * 2],
        "unknown annotator 'gpt5'": [*good, "--annotator", "gpt5"],
        "'nobody' is not on the leaderboard": [*good, "--leaderboard", "nobody"],
        "num_workers is 0": [*good, "--num_workers", "0"],
        "--submission needs --decode": [*good, "--submission"],
        "--submission needs the leaderboard's judge": [
            "--output",
            str(folder),
            "--decode",
            "x.yaml",
            "--submission",
            "--link",
            "x",
            "--pretty_name",
            "X",
            "--judge_model",
            "other",
        ],
        "absent.json: No such file": [*good, "--reference", str(folder / "absent.json")],
        "the environment variable NO_SUCH_KEY is not set": [*good, "--api_key_env", "NO_SUCH_KEY"],
    }
    for message, argv in cases.items():
        assert message in scripts.refused(capsys, alpaca.main, argv)


@pytest.fixture
def recipe(small):
    """A decoding recipe over models of two layers, and instructions that they can read."""
    folder, server = small
    for name, seed in {"base": 0, "tuned": 1, "untuned": 2}.items():
        tiny.model(seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    names = ["w1 w2", "w3", "w4 w5"]
    rows = [{"instruction": n, "output": f"reference {n}", "generator": "reference"} for n in names]
    (folder / "reference.json").write_text(json.dumps(rows))
    server.recordings = dict.fromkeys(names, server.recordings["one"])
    config = {
        "base": str(folder / "base"),
        "pairs": [{"tuned": str(folder / "tuned"), "untuned": str(folder / "untuned"), "beta": 3.0}],
        "search": {"token_guidance": "implicit"},
        "sampling": {"max_new_tokens": 8},
    }
    (folder / "decode.yaml").write_text(yaml.safe_dump(config))
    return [
        "--decode", str(folder / "decode.yaml"), "--name", "mine", "--reference",
        str(folder / "reference.json"), "--endpoint", server.url, "--output", str(folder / "out"), "--yes",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_recipe_is_decoded_and_judged_beside_its_base(recipe, small):
    folder, server = small
    alpaca.main(recipe)
    report = json.loads((folder / "out" / "alpaca.json").read_text())
    assert list(report["arms"]) == ["mine-base", "mine"]
    assert report["paired"]["n"] == 3
    outputs = {n: json.loads((folder / "out" / n / "model_outputs.json").read_text()) for n in report["arms"]}
    assert [row["instruction"] for row in outputs["mine"]] == ["w1 w2", "w3", "w4 w5"]
    assert {row["generator"] for row in outputs["mine-base"]} == {"mine-base"}
    assert [r["output"] for r in outputs["mine"]] != [r["output"] for r in outputs["mine-base"]]
    # Equal outputs make one request; the cache answers the second.
    same = sum(a["output"] == b["output"] for a, b in zip(*outputs.values(), strict=True))
    # Once more: the same outputs, and nothing is asked again.
    decoded = folder / "out" / "mine" / "decoded.jsonl"
    before = decoded.read_bytes()
    alpaca.main(recipe)
    assert decoded.read_bytes() == before
    assert server.answered.total() == 6 - same


@pytest.mark.slow
def test_a_submission_of_three_instructions_is_refused_before_the_judge_is_paid(recipe, small, capsys):
    argv = [*recipe, "--submission", "--pretty_name", "Mine", "--link", "https://example.org"]
    assert "3 outputs, the leaderboard needs 805" in scripts.refused(capsys, alpaca.main, argv)
    assert small[1].answered.total() == 0


def test_dropped_connections_lose_nothing(small):
    small[1].drops = 0.5
    alpaca.main(arguments(small, "--yes"))
    assert small[1].answered.total() == 3
    report = json.loads((small[0] / "out" / "alpaca.json").read_text())
    assert report["arms"]["mine"]["n_total"] == 3


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


def test_the_recipe_names_what_is_there():
    path = scripts.ROOT / "recipes" / "tulu" / "alpaca.yaml"
    options = parse_options(alpaca.Options, ["--config", str(path)], "")
    alpaca.check(options)
    assert options.annotator == OFFICIAL_ANNOTATOR
    assert config_from_dict(read_yaml(str(scripts.ROOT / options.decode))).pairs
    assert len(leaderboard(options.leaderboard)) == 4  # names that it does not know are refused
