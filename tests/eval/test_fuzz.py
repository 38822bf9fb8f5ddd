"""Generated inputs to every evaluation command: whatever is in them, no traceback.

Each example takes inputs that are right, and changes one place of one of them to something else. What a
command then does is its own affair, but it returns, or leaves with exit code 2 and one line on stderr.
`tests/fuzz/profile.py` says how many examples each command gets.
"""

import contextlib
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivg.evaluation.alpaca.answer_cache import AnswerCache
from tests.eval import scripts
from tests.eval.fuzzing import (
    JUNK,
    NUMBERS,
    TEXTS,
    as_bytes,
    as_yaml,
    changed,
    empty_folder,
    lines,
    run,
)
from tests.evaluation import tiny
from tests.fuzz.profile import fuzz

COMMANDS = {
    name: scripts.load(name)
    for name in ("alpaca", "gold_reward", "report", "reproducibility", "speed", "sweep")
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, seed in {"base": 0, "tuned": 1, "untuned": 2}.items():
        tiny.model(seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


ROWS = [
    {"id": i, "prompt": f"w{i}", "response": "w3 w4", "num_tokens": 2, "token_ids": [5, 6], "value": 0.5}
    for i in range(2)
]
TRACES = [
    {
        "id": "0",
        "sample": 0,
        "tokens": ["w3", " w4"],
        "token_logratios": [0.5, -1.0],
        "chunks": [
            {
                "candidates": [
                    {"row": 0, "parent": None, "text": "w3", "value": 1.0, "kept": 0, "finished": False},
                    {"row": 1, "parent": None, "text": "w4", "value": 0.5, "kept": None, "finished": False},
                ]
            }
        ],
    }
]
MEAN = {"mean": 1.0, "stderr": 0.5, "ci95": [0.0, 2.0], "bootstrap95": [0.1, 1.9], "n": 3, "missing": 0}
MEASURES = dict.fromkeys(
    ("gold_reward", "distinct_1", "distinct_2", "num_tokens", "distance_from_base"), MEAN
)
GUIDED = {"token_guidance": "implicit", "chunk_guidance": "none"}
SPEED_RUN = {
    "method": "base", "setting": "β=1", "max_new_tokens": 4, "num_prompts": 3, "num_tokens": 3.5,
    "seconds_per_prompt": 0.5, "peak_memory_mib": 100.0, "base_tokens_fed": 9, "guide_tokens_fed": 9,
    "gold_reward": MEAN, **GUIDED,
}  # fmt: skip
SYSTEM = {
    "win_rate": 50.0, "standard_error": 1.0, "discrete_win_rate": 50.0, "n_total": 3, "num_instructions": 3,
    "num_null": 0, "avg_length": 9, "length_controlled_winrate": None, "lc_standard_error": None,
    "lc_missing": "none",
}  # fmt: skip
JUDGED = (
    "agreement", "kappa", "position_bias", "order_flips", "repeat_flips", "repeat_variance", "null_rate",
    "rank_correlation",
)  # fmt: skip
RANKED = dict.fromkeys(("pairwise_accuracy", "best_of_n", "rank_correlation"), MEAN)
RESULTS = {
    "report.json": {
        "reward": "vader", "reference": "base", "methods": {"base": MEASURES, "m": MEASURES},
        "paired": {"m": MEAN}, "win_rates": {"m": MEAN},
    },
    "sweep.json": {
        "kind": "sweep", "reward": "vader", "methods": {"base": MEASURES},
        "cost": {"base": {"tokens_fed": {"base": 9}, "flops_per_prompt": 1e9}},
        "cells": [{"name": "base", "method": "base", "setting": "β=1"}],
    },
    "speed.json": {
        "kind": "speed", "reward": "vader", "machine": "here", "repeats": 1, "findings": ["It costs."],
        "runs": [SPEED_RUN, {**SPEED_RUN, "token_guidance": "none", "chunk_guidance": "explicit"}],
    },
    "alpaca.json": {
        "judge": {"annotator": "a", "model": "m", "endpoint": "http://x/"}, "not_comparable": None,
        "arms": {"base": SYSTEM, "mine": SYSTEM}, "paired": MEAN, "leaderboard": {"other": SYSTEM},
        "direct": {
            "system": "mine", "other": "base", "win_rate": {**MEAN, "t95": [0.1, 0.9]}, "prompts_needed": 90,
            "at_equal_length": {**MEAN, "slope": 0.5, "slope_ci95": [0.0, 1.0]},
        },
    },
    "judge.json": {
        "judge": {"annotator": "a", "model": "m"}, "recorded_judge": "r", "num_left_out": 0,
        **dict.fromkeys(JUDGED, MEAN), "num_comparisons": 3, "num_instructions": 3, "num_repeats": 1,
        "systems": {"mine": {"judge": MEAN, "recorded": MEAN, "difference": MEAN}, "none": None},
        "verdict": "useless: none of its 3 answers holds a preference",
    },
    "reward_accuracy.json": {
        "form": "best-of-N", "num_prompts": 3, "num_responses": 9,
        "scorers": {"value": [{"percent": 100, "calibration": [], "num_missing": 0, **RANKED}]},
    },
    "m.jsonl": ROWS,
    "m.trace.jsonl": TRACES,
}  # fmt: skip


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_report(data):
    name = data.draw(st.sampled_from(sorted(RESULTS)))
    document = data.draw(changed(RESULTS[name]))
    title = data.draw(TEXTS.filter(lambda text: "\ud800" not in text and not text.startswith("-")))
    with empty_folder() as folder:
        (folder / "in").mkdir()
        if name == "m.trace.jsonl":
            (folder / "in" / "m.jsonl").write_bytes(lines(ROWS))
        is_lines = name.endswith("l") and isinstance(document, list)
        (folder / "in" / name).write_bytes(lines(document) if is_lines else as_bytes(document))
        run(
            COMMANDS["report"].main, ["--folder", folder / "in", "--output", folder / "out", "--title", title]
        )
        pages = [path.read_text() for path in (folder / "out").glob("report.*")]
        # A backslash before it makes it plain text in Markdown.
        assert not any(re.search(r"(?<!\\)<img src=x>|\x1b", page) for page in pages)


def count_letters(rows, responses):
    return [float(len(text)) for text in responses]


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_gold_reward(models, data):
    rows = data.draw(changed(ROWS))
    options = data.draw(
        st.just({})
        | st.fixed_dictionaries(
            {},
            optional={
                "--base": st.sampled_from([str(models / "base"), "/dev/zero", "\x00", str(models)]),
                "--max_tokens": st.sampled_from([-1, 0, 1, 2**70, "x"]),
                "--kl_of": st.sampled_from(["a", "b", "c"]),
                "--best_of": st.sampled_from(["b=4", "b=0", "b=²", "c=4", "b", "b=" + "9" * 5_000]),
                "--reference": TEXTS,
                "--beta": NUMBERS,
                "--output": st.sampled_from(["", "/dev/null", "/proc/x", "\x00", "x" * 300]),
            },
        )
    )
    with empty_folder() as folder:
        (folder / "a.jsonl").write_bytes(lines(ROWS))
        (folder / "b.jsonl").write_bytes(lines(rows) if isinstance(rows, list) else as_bytes(rows))
        files = ["--files", f"a={folder / 'a.jsonl'}", f"b={folder / 'b.jsonl'}"]
        pair = ["--tuned", models / "tuned", "--untuned", models / "untuned"]
        flags = [f"{flag}={value}" for flag, value in options.items()]
        run(COMMANDS["gold_reward"].main, [*files, *pair, *flags, "--function", f"{__name__}.count_letters"])


GRID = {
    "base": "base",
    "pairs": [{"tuned": "tuned", "untuned": "untuned", "beta": 1.0}],
    "sampling": {"max_new_tokens": 4, "temperature": 0.7, "stop": ["w3"]},
    "max_batch_rows": 8,
    "lengths": [4],
    "repeats": 1,
    "reward": {"function": f"{__name__}.count_letters"},
    "output": "out",
    "input": "/dev/null",  # empty, so that nothing is decoded in the end
    "grid": [{"method": "m", "token_guidance": "implicit", "beta": [0.5, 1], "num_beams": 1}],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sweep", "speed"])
@fuzz
@given(data=st.data())
def test_grids(models, command, data):
    document = data.draw(changed(GRID))
    with empty_folder() as folder, contextlib.chdir(folder):
        Path("grid.yaml").write_bytes(as_yaml(document))
        Path("prompts.jsonl").write_bytes(b"")
        run(COMMANDS[command].main, ["--config", "grid.yaml", "input=prompts.jsonl"])


STATISTICS = {
    "settings_hash": "x",
    "seconds_per_prompt": 0.5,
    "tokens_fed": {"base": 9},
    "flops_per_prompt": 1.0,
}


@fuzz
@given(data=st.data())
def test_what_a_sweep_left_behind(data):
    """Whatever lies there is a whole run, or is decoded again."""
    name, good = data.draw(st.sampled_from([("base.json", STATISTICS), ("base.jsonl", ROWS)]))
    document = data.draw(changed(good))
    with empty_folder() as folder:
        (folder / "base.json").write_bytes(as_bytes(STATISTICS))
        (folder / "base.jsonl").write_bytes(lines(ROWS))
        (folder / name).write_bytes(
            lines(document) if name[-1] == "l" and isinstance(document, list) else as_bytes(document)
        )
        sweep = COMMANDS["sweep"]
        found = sweep.read_finished(folder, sweep.Run(method="base"), num_records=2)
        assert found is None or sum(found["tokens_fed"].values()) >= 0 or name == "base.json"


OUTPUTS = [{"instruction": n, "output": f"text {n}", "generator": "mine"} for n in ("a", "b")]
ANSWERS = [{"key": "k", "answer": {"choices": [{"message": {"role": "assistant", "content": "m"}}]}}]


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_alpaca(data):
    """Nobody listens where the judge would be, and nobody agrees to pay: the cost is as far as it goes."""
    name = data.draw(st.sampled_from(["mine.json", "reference.json", "answers", "options"]))
    good = {
        "mine.json": OUTPUTS,
        "reference.json": OUTPUTS,
        "answers": ANSWERS,
        "options": {"num_workers": 2},
    }
    document = data.draw(changed(good[name]))
    options = data.draw(
        st.just({})
        | st.fixed_dictionaries(
            {},
            optional={
                "--patience": NUMBERS,
                "--price": NUMBERS,
                "--judge_model": TEXTS,
                "--annotator": TEXTS,
                "--endpoint": TEXTS,
                "--leaderboard": TEXTS,
                "--num_workers": st.sampled_from([-1, 0, 2**70, "x"]),
            },
        )
    )
    with empty_folder() as folder, contextlib.chdir(folder):
        Path("out").mkdir()
        for file in ("mine.json", "reference.json"):
            Path(file).write_bytes(as_bytes(document if file == name else OUTPUTS))
        if name == "answers":
            Path("out/judge_answers.jsonl").write_bytes(
                lines(document) if isinstance(document, list) else as_bytes(document)
            )
        config = as_yaml(document if name == "options" else {})
        Path("options.yaml").write_bytes(config)
        argv = ["--config", "options.yaml", "--outputs", "mine.json", "--reference", "reference.json"]
        flags = [f"{flag}={value}" for flag, value in options.items()]
        run(
            COMMANDS["alpaca"].main, [*argv, "--endpoint", "http://127.0.0.1:9/v1", "--output", "out", *flags]
        )
        assert not list(folder.parent.glob("x"))
        assert set(os.listdir(folder)) == {"mine.json", "reference.json", "options.yaml", "out"}


KEYS = ["dtypes", "rows", "num_prompts", "max_new_tokens", "temperature", "logit_std", "output"]


@fuzz
@given(options=st.dictionaries(st.sampled_from(KEYS), JUNK, min_size=1, max_size=2))
def test_reproducibility(options):
    """With a dtype that there is not: nothing is measured."""
    with empty_folder() as folder:
        (folder / "options.yaml").write_bytes(as_yaml(options))
        run(COMMANDS["reproducibility"].main, ["--config", folder / "options.yaml", "--dtypes", "float8"])


def test_the_answers_that_a_cache_takes_for_damaged_are_named(tmp_path):
    """What the fuzzing of `alpaca` relies on: a cache opens, whatever its lines hold."""
    (tmp_path / "answers.jsonl").write_bytes(b"null\n" + b"[" * 100_000 + b"\n")
    with AnswerCache(tmp_path / "answers.jsonl") as cache:
        assert cache.damaged == [1, 2]
    assert sys.getrecursionlimit() < 100_000
