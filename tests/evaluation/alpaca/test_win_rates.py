import hashlib
import json
import math
import socket
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from scipy.special import expit

from ivg.errors import UserError
from ivg.evaluation.alpaca import annotators, files, win_rates
from ivg.evaluation.alpaca.view import OPENAI_ENDPOINT, notes
from ivg.evaluation.output_folder import OutputFolder
from tests.evaluation.alpaca import gamed


def outputs(names, generator="mine"):
    return [{"instruction": n, "output": f"answer to {n}", "generator": generator} for n in names]


def annotation(instruction, preference):
    return {
        "instruction": instruction, "preference": preference,
        "output_1": "abcd", "output_2": "abcdef", "generator_1": "ref", "generator_2": "mine",
        "annotator": "a",
    }  # fmt: skip


@pytest.fixture
def official(monkeypatch):
    """805 stand-in instructions, taken for AlpacaEval's."""
    names = [f"instruction {i}" for i in range(805)]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    monkeypatch.setattr(files, "OFFICIAL_INSTRUCTIONS", digest)
    return names


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An offline Hub client whose cache is ours."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_rates_by_hand_and_nulls_counted():
    rows = [
        annotation("a", 1.2),
        annotation("b", 1.9),
        annotation("c", None),
        annotation("d", None),
        annotation("e", math.nan),
    ]
    found = win_rates.results(rows)
    assert found["win_rate"] == pytest.approx(55)  # (20 + 90) / 2
    assert found["standard_error"] == pytest.approx(35)  # deviations of 35 both ways: 35 sqrt(2) / sqrt(2)
    assert (found["n_total"], found["num_instructions"]) == (2, 5)
    assert found["num_null"] == 3
    assert found["avg_length"] == 6
    assert found["length_controlled_winrate"] is None
    assert found["lc_missing"] == "needs AlpacaEval's 805 instructions in their own order"


def test_a_judge_without_any_preference_is_an_error():
    with pytest.raises(UserError, match="none of the 2 answers holds a preference"):
        win_rates.results([annotation("a", None), annotation("b", None)])


def test_arms_are_compared_on_the_same_instructions():
    arms = {
        "base": [annotation("a", 1.0), annotation("b", 1.5), annotation("c", None)],
        "mine": [annotation("a", 1.2), annotation("b", 1.9), annotation("c", 2.0)],
    }
    annotator = annotators.Annotator("other", Path("configs.yaml"), "small-judge")
    report = win_rates.sum_up(arms, annotator, outputs("abc"), OPENAI_ENDPOINT)
    assert report["paired"]["mean"] == pytest.approx(30)  # (20 + 40) / 2; c lacks a side
    assert (report["paired"]["n"], report["paired"]["missing"]) == (2, 1)
    said = " ".join(notes(report))
    assert "Only one generator" not in said
    assert "judge its unguided base" in " ".join(notes({**report, "arms": {"mine": report["arms"]["mine"]}}))
    assert "Not comparable with the public leaderboard: judge other is not the leaderboard's" in said
    assert "base: 1 of 3 without a preference (no answer, or none in it)" in said
    assert "Judged at" not in said
    own = win_rates.sum_up(arms, annotator, outputs("abc"), "http://localhost:8000/v1/")
    assert own["judge"]["endpoint"] == "http://localhost:8000/v1/"
    assert "Judged at http://localhost:8000/v1/, not at OpenAI's own endpoint" in " ".join(notes(own))
    assert "mine: no length-controlled win rate: needs AlpacaEval's 805" in said


def test_only_the_official_judge_and_reference_are_comparable(official, tmp_path):
    judge = annotators.find_annotator(annotators.OFFICIAL_ANNOTATOR, None, OutputFolder(tmp_path))
    reference = outputs(official, generator="gpt4_1106_preview")
    assert win_rates.why_not_comparable(judge, reference) is None
    assert "the reference is not" in win_rates.why_not_comparable(judge, reference[:100])
    assert "the reference is not" in win_rates.why_not_comparable(judge, reference[::-1])
    assert "the reference is not" in win_rates.why_not_comparable(judge, outputs(official))


def test_a_file_that_takes_the_official_name_is_another_judge(official, tmp_path):
    """Anyone can write a file whose annotator is called as the leaderboard's, whatever it asks."""
    package = annotators.find_annotator(annotators.OFFICIAL_ANNOTATOR, None, OutputFolder(tmp_path)).path
    own = tmp_path / "configs" / "configs.yaml"
    own.parent.mkdir()
    config = yaml.safe_load(package.read_text())
    template = package.parents[1] / config[annotators.OFFICIAL_ANNOTATOR]["prompt_template"]
    config[annotators.OFFICIAL_ANNOTATOR]["prompt_template"] = str(template)
    own.write_text(yaml.safe_dump(config))
    judge = annotators.find_annotator(str(own), None, OutputFolder(tmp_path))
    assert judge.name == annotators.OFFICIAL_ANNOTATOR
    assert not judge.is_official
    assert judge.price is None
    reference = outputs(official, generator="gpt4_1106_preview")
    assert f"of {own} is not the leaderboard's" in win_rates.why_not_comparable(judge, reference)
    assert annotators.find_annotator(
        str(package), None, OutputFolder(tmp_path)
    ).is_official  # by its path: the same file


def test_length_control_finds_what_preferences_were_made_from(official, hub_cache):
    """The judge likes long answers and the model writes them: the rate at equal lengths is known by hand."""
    difficulty = gamed.write(hub_cache)["instruction_difficulty"].to_numpy()[:805]
    shorter = np.random.default_rng(1).integers(-1500, 300, size=805)  # by how much, in characters
    wins = expit(-1.5 * np.tanh(shorter / shorter.std(ddof=1)) + difficulty - 0.8)
    rows = [annotation(name, 1 + float(win)) for name, win in zip(official, wins, strict=True)]
    for row, less in zip(rows, shorter, strict=True):
        row["output_1"], row["output_2"] = "x" * 2000, "x" * int(2000 - less)
    found = win_rates.results(rows)
    assert found["win_rate"] == pytest.approx(100 * wins.mean())
    assert found["win_rate"] > 50
    at_equal_lengths = expit(difficulty - 0.8)
    assert found["length_controlled_winrate"] == pytest.approx(100 * at_equal_lengths.mean(), abs=0.05)
    error = 100 * at_equal_lengths.std(ddof=1) / np.sqrt(805)
    assert found["lc_standard_error"] == pytest.approx(error, rel=0.01)
    assert "lc_missing" not in found


def test_length_control_is_refused_in_another_order(official, hub_cache):
    """Its file knows instructions by place: in another order the difficulties would be other rows'."""
    gamed.write(hub_cache)
    rows = [annotation(name, 1.5) for name in official]
    found = win_rates.length_controlled([rows[1], rows[0], *rows[2:]])
    assert found["length_controlled_winrate"] is None
    assert found["lc_missing"] == "needs AlpacaEval's 805 instructions in their own order"


def test_without_the_hub_there_is_no_length_control(official, hub_cache):
    found = win_rates.length_controlled([annotation(name, 1.5) for name in official])
    assert found["length_controlled_winrate"] is None
    assert "df_gamed.csv" in found["lc_missing"]
    with pytest.raises(UserError, match="give them by --reference"):
        win_rates.hub_reference()


def test_leaderboard_rows_are_the_published_ones():
    row = win_rates.leaderboard(["alpaca-7b"])["alpaca-7b"]
    assert row["win_rate"] == pytest.approx(2.5915, abs=1e-4)
    with pytest.raises(UserError, match="'alpaca-7' is not on the leaderboard; did you mean 'alpaca-7b'"):
        win_rates.leaderboard(["alpaca-7"])


def test_another_judge_model_makes_an_annotator_of_its_own(tmp_path):
    official = annotators.find_annotator(annotators.OFFICIAL_ANNOTATOR, None, OutputFolder(tmp_path))
    assert official.is_official
    assert official.model == "gpt-4-1106-preview"
    own = annotators.find_annotator(annotators.OFFICIAL_ANNOTATOR, "meta/llama", OutputFolder(tmp_path))
    assert not own.is_official
    assert own.price is None
    config = yaml.safe_load(own.path.read_text())[own.name]
    assert config["completions_kwargs"]["model_name"] == "meta/llama"
    assert config["completions_kwargs"]["top_logprobs"] == 5
    assert annotators.find_annotator(str(own.path), None, OutputFolder(tmp_path)) == own


def test_bad_annotators_are_refused(tmp_path):
    with pytest.raises(UserError, match="unknown annotator 'weighted_alpaca_eval_gpt4'; did you mean"):
        annotators.find_annotator("weighted_alpaca_eval_gpt4", None, OutputFolder(tmp_path))
    with pytest.raises(UserError, match="claude_2 asks through anthropic_completions"):
        annotators.find_annotator("claude_2", None, OutputFolder(tmp_path))
    several = tmp_path / "several.yaml"
    several.write_text("a: {}\nb: {}\n")
    with pytest.raises(UserError, match="2 annotators"):
        annotators.find_annotator(str(several), None, OutputFolder(tmp_path))


ASKS = "fn_completions: openai_completions"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"0 annotators \(none\)"),
        ("a: [1", "not valid YAML"),
        ("- a", "expected a mapping of keys, got a list"),
        ("a: text", "annotator a is 'text'; give its keys"),
        (f"../../x: {{{ASKS}}}", r"annotator '\.\./\.\./x' cannot name a file of its own"),
        (f"a: {{{ASKS}}}", "annotator a has no completions_kwargs.model_name"),
        (f"a: {{{ASKS}, completions_kwargs: 3}}", "annotator a has no completions_kwargs.model_name"),
        (f"a: {{{ASKS}, completions_kwargs: {{model_name: m}}}}", "annotator a needs a prompt_template"),
    ],
)
def test_annotator_files_of_another_shape_are_refused(tmp_path, content, message):
    path = tmp_path / "folder" / "configs.yaml"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        annotators.find_annotator(str(path), None, OutputFolder(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "expected a non-empty JSON array of outputs, got a dict"),
        ("[]", "expected a non-empty JSON array"),
        ('["x"]', "output 1: no string 'instruction'"),
        ('[{"instruction": "a", "output": null, "generator": "g"}]', "output 1: no string 'output'"),
        (json.dumps(outputs("aab")), "instruction 'a' occurs 2 times"),
        (json.dumps(outputs("a") + outputs("b", "other")), r"2 generators \(mine, other\)"),
    ],
)
def test_files_that_are_not_alpaca_evals_are_refused(tmp_path, content, message):
    path = tmp_path / "model_outputs.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        files.read_outputs(path)


def test_outputs_follow_the_references_order():
    assert files.align(outputs("cab"), outputs("abc"), "f") == outputs("abc")
    with pytest.raises(UserError, match="1 of the reference's 3 instructions are missing, such as 'b'"):
        files.align(outputs("ac"), outputs("abc"), "f")
    with pytest.raises(UserError, match="instruction 'd' is not in the reference"):
        files.align(outputs("abcd"), outputs("abc"), "f")


def test_length_control_of_local_data_asks_nobody(official, hub_cache, monkeypatch):
    """The Hub is asked for its file where the reference came from there, and only then."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    found = win_rates.length_controlled([annotation(n, 1.5) for n in official], may_download=False)
    assert found["length_controlled_winrate"] is None
    assert "fetch it once: hf download tatsu-lab/alpaca_eval df_gamed.csv" in found["lc_missing"]


def submit(folder, mine, reference, annotations):
    return files.write_submission(
        OutputFolder(folder), mine, reference, annotations,
        annotator="judge", prompt_template="{instruction}",
        pretty_name="Mine", link="https://example.org", settings={"beta": 1.0},
    )  # fmt: skip


def test_a_submission_has_what_a_pull_request_needs(tmp_path, official):
    names, reference = official, outputs(official, "gpt4_1106_preview")
    submit(tmp_path, outputs(names[::-1]), reference, [annotation(n, 1.5) for n in names])
    written = json.loads((tmp_path / "submission/results/mine/model_outputs.json").read_text())
    assert [row["instruction"] for row in written] == names
    assert len(json.loads((tmp_path / "submission/results/mine/judge/annotations.json").read_text())) == 805
    config = yaml.safe_load((tmp_path / "submission/models_configs/mine/configs.yaml").read_text())["mine"]
    assert (config["pretty_name"], config["link"]) == ("Mine", "https://example.org")
    assert (tmp_path / "submission/models_configs" / config["prompt_template"]).read_text() == "{instruction}"


def test_a_submission_that_would_be_turned_down_is_refused(tmp_path, official):
    names, reference = official, outputs(official, "gpt4_1106_preview")
    annotations = [annotation(n, 1.5) for n in names]
    with pytest.raises(UserError, match="705 of the reference's 805 instructions are missing"):
        submit(tmp_path, outputs(names[:100]), reference, annotations[:100])
    blank = outputs(names)
    blank[7]["output"] = " "
    with pytest.raises(UserError, match="1 outputs are empty, such as that for 'instruction 7'"):
        submit(tmp_path, blank, reference, annotations)
    others = {
        "in another order": reference[::-1],
        "of another model": outputs(names, "mine"),
        "too few": reference[:100],
        "to another instruction": outputs([*names[:-1], "else"], "gpt4_1106_preview"),
    }
    for other in others.values():
        answers = outputs([row["instruction"] for row in other])
        with pytest.raises(UserError, match="the reference is not the leaderboard's 805 answers"):
            submit(tmp_path, answers, other, annotations[: len(other)])
    with pytest.raises(UserError, match="804 annotations for 805 outputs"):
        submit(tmp_path, outputs(names), reference, annotations[1:])
    assert not list(tmp_path.iterdir())
