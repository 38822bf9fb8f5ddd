"""IFEval: aggregation by hand, and files that do not fit."""

import json

import numpy as np
import pytest

from ivg.evaluation import ifeval
from ivg.evaluation.ifeval import instruction_rate
from tests.eval import scripts

script = scripts.load("ifeval")

PROMPTS = [
    {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Lower case, no commas.",
        "instruction_id_list": ["change_case:english_lowercase", "punctuation:no_comma"],
        "kwargs": [{}, {}],
    },
]


def check_commas(prompt, responses):
    """Stand in for the package's: a comma breaks every instruction; loosely, the first line may hold some."""

    def followed(text):
        return ["," not in text for _ in prompt["instruction_id_list"]]

    strict = followed(responses[0])
    loose = followed(responses[0].partition("\n")[2]) if "\n" in responses[0] else strict
    return {
        "prompt_level_strict_acc": all(strict),
        "inst_level_strict_acc": strict,
        "prompt_level_loose_acc": all(loose),
        "inst_level_loose_acc": loose,
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "load_checker", lambda: check_commas)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))

    def argv(*responses, **changes):
        rows = [{"prompt": row["prompt"], "response": r} for row, r in zip(PROMPTS, responses, strict=False)]
        rows += changes.get("more", [])
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = ["--files", f"mine={tmp_path / 'mine.jsonl'}", "--prompts", str(tmp_path / "prompts.jsonl")]
        return [*files, "--output", str(tmp_path / "ifeval.json")]

    return argv


def test_accuracies_by_hand(run, tmp_path):
    script.main(run("fine", "well, it is\nfine"))
    found = json.loads((tmp_path / "ifeval.json").read_text())["ifeval"]["mine"]
    assert {name: figure["mean"] for name, figure in found.items()} == {
        "prompt_strict": 0.5,
        "instruction_strict": pytest.approx(1 / 3),
        "prompt_loose": 1,
        "instruction_loose": 1,
    }
    assert found["instruction_strict"]["num_instructions"] == 3


def test_the_interval_over_instructions_covers():
    """Prompts of one to three instructions, of which all or none are followed: 60%, in clusters."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        sizes, follows = rng.integers(1, 4, 150), rng.random(150) < 0.6
        low, high = instruction_rate([[bool(f)] * s for s, f in zip(sizes, follows, strict=True)])["ci95"]
        covered += low <= 0.6 <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_prompts_that_do_not_fit_are_one_line(run, capsys):
    other, twice = {"prompt": "Else.", "response": "x"}, {"prompt": "No commas.", "response": "x"}
    for responses, more, message in [
        (["only one"], [], "1 of 2 prompts have no response, such as 'Lower case, no commas.'"),
        (["a", "b"], [other], "'Else.' is not among the prompts"),
        (["a", "b"], [twice], "'No commas.' occurs 2 times"),
    ]:
        assert message in scripts.refused(capsys, script.main, run(*responses, more=more))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"key": 1, "prompt": "a"}], "line 1: no prompt with its instructions"),
        ([{**PROMPTS[1], "kwargs": [{}]}], "line 1: no prompt with its instructions"),
        ([PROMPTS[0], PROMPTS[0]], "'No commas.' occurs 2 times"),
        ([], "no prompts; give IFEval's JSONL"),
    ],
)
def test_bad_prompts_are_one_line(run, tmp_path, capsys, rows, message):
    argv = run("a", "b")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert message in scripts.refused(capsys, script.main, argv)


def test_what_is_missing_is_named(run, capsys, monkeypatch):
    monkeypatch.setattr(script, "load_checker", ifeval.load_checker)
    real = ifeval.importlib.import_module

    def without(name):
        if name == "nltk":
            raise ModuleNotFoundError("No module named 'nltk'")
        return real(name)

    monkeypatch.setattr(ifeval.importlib, "import_module", without)
    error = scripts.refused(capsys, script.main, run("a", "b"))
    assert "pip install 'lm-eval[ifeval]'" in error
