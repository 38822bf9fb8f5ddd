"""AlpacaEval on three instructions: cost, consent, failures of the judge, recipes and submissions."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import openai
import pytest
import yaml

from ivg.config.yaml_file import config_from_dict, read_yaml
from ivg.evaluation.alpaca.alpaca_eval_package import constants
from ivg.evaluation.alpaca.annotators import OFFICIAL_ANNOTATOR
from ivg.evaluation.alpaca.win_rates import leaderboard
from ivg.evaluation.options import parse_options
from tests.eval import scripts
from tests.eval.judge_server import ReplayJudge
from tests.evaluation import tiny

SECRET = "sk-very-secret"

alpaca = scripts.load("alpaca")


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
    alpaca.main(arguments(small, "--yes", "--price", "1e6", "--judge_model", "small-judge"))
    printed, costs = (" ".join(text.split()) for text in capsys.readouterr())
    assert "3 judge calls to small-judge at http://127.0.0.1" in costs
    num_tokens = sum(len(json.dumps(asked["messages"])) for asked in small[1].requests) / 5
    assert f"about {num_tokens:,.0f} prompt tokens, about ${num_tokens:.2f};" in costs  # a dollar each
    assert num_tokens > 100
    assert (
        "Not comparable with the public leaderboard: judge weighted_alpaca_eval_gpt4_turbo-small-judge"
        in printed
    )
    assert f"Judged at {small[1].url}/, not at OpenAI's own endpoint" in printed
    report = json.loads((small[0] / "out" / "alpaca.json").read_text())
    preferences = {r["preference"] for r in json.loads((small[0] / "out/mine/annotations.json").read_text())}
    assert {round(p, 3) for p in preferences} <= {1.2, 1.8}  # the order in which answers are shown varies
    assert report["arms"]["mine"]["n_total"] == 3


def test_another_judge_shows_leaderboard_rows_only_beside_its_measures(small, capsys):
    folder, _ = small
    flags = ["--yes", "--judge_model", "small-judge", "--leaderboard", "alpaca-7b"]
    alpaca.main(arguments(small, *flags))
    printed = " ".join(capsys.readouterr().out.split())
    assert "No rows of the leaderboard beside another judge's rates" in printed
    assert json.loads((folder / "out" / "alpaca.json").read_text())["leaderboard"] == {}
    judge = {"annotator": "weighted_alpaca_eval_gpt4_turbo-small-judge", "model": "small-judge"}
    measures = {"judge": judge, "recorded_judge": "gpt", "verdict": "agrees (kappa 0.5)"}
    (folder / "judge.json").write_text(json.dumps(measures))
    alpaca.main(arguments(small, *flags, "--judge_quality", str(folder / "judge.json")))
    printed = " ".join(capsys.readouterr().out.split())
    assert "This judge beside gpt: agrees (kappa 0.5)." in printed
    assert "alpaca-7b" in json.loads((folder / "out" / "alpaca.json").read_text())["leaderboard"]
    (folder / "judge.json").write_text(json.dumps({**measures, "judge": {**judge, "model": "other"}}))
    again = arguments(small, *flags, "--judge_quality", str(folder / "judge.json"))
    assert "with model other, but" in scripts.refused(capsys, alpaca.main, again)
    (folder / "judge.json").write_text("[]")
    assert "holds no measures of a judge" in scripts.refused(capsys, alpaca.main, again)


def test_two_generators_are_compared_with_each_other_in_both_orders(small, capsys):
    folder, server = small
    rows = [{"instruction": name, "output": f"base {name}", "generator": "base"} for name in NAMES]
    (folder / "base.json").write_text(json.dumps(rows))
    files = [str(folder / "base.json"), str(folder / "mine.json")]
    alpaca.main(arguments(small, "--yes", "--direct", "--outputs", *files))
    direct = json.loads((folder / "out" / "alpaca.json").read_text())["direct"]
    assert (direct["system"], direct["other"]) == ("mine", "base")
    # The judge gives 80% to the answer shown second, whichever it is: both orders cancel that.
    assert direct["win_rate"]["mean"] == pytest.approx(0.5)
    assert direct["win_rate"]["n"] == 3
    # 6 against the reference, and 6 with each other, of which none is a question asked before.
    assert (len(server.answered), server.answered.total()) == (12, 12)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Compared with each other, in both orders" in printed
    assert "No direct comparison at equal length: 3 prompts are too few" in printed
    refused = scripts.refused(capsys, alpaca.main, arguments(small, "--yes", "--direct"))
    assert "--direct compares two generators" in refused


JUDGES = scripts.ROOT / "recipes" / "judges"


@pytest.mark.parametrize("name", sorted(path.name for path in JUDGES.iterdir() if path.is_dir()))
def test_each_judge_of_the_recipes_asks_what_its_endpoint_takes(small, name):
    folder, server = small
    alpaca.main(arguments(small, "--yes", "--annotator", str(JUDGES / name), "--both_orders"))
    # The judge names the second answer, whichever it is: both orders cancel that, or are a tie.
    report = json.loads((folder / "out" / "alpaca.json").read_text())
    assert report["arms"]["mine"]["win_rate"] == pytest.approx(50)
    assert report["arms"]["mine"]["n_total"] == 3
    assert report["not_comparable"]
    assert (len(server.answered), server.answered.total()) == (6, 6)
    asked = {
        "open_weights": {"max_tokens", "temperature", "top_p", "logprobs", "top_logprobs"},
        "without_logprobs": {"max_tokens", "temperature", "top_p"},
        "reasoning": {"max_completion_tokens"},
    }[name]
    assert all(set(request) == {"model", "messages", *asked} for request in server.requests)
    alpaca.main(arguments(small, "--annotator", str(JUDGES / name), "--both_orders"))
    assert server.answered.total() == 6


def test_a_verdict_that_never_came_is_a_null(small):
    """A reasoning model whose room was used up by its thought."""
    folder, server = small
    cut = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": None}}
    server.recordings["two"] = cut
    alpaca.main(arguments(small, "--yes", "--annotator", str(JUDGES / "reasoning"), "--both_orders"))
    arm = json.loads((folder / "out" / "alpaca.json").read_text())["arms"]["mine"]
    assert (arm["n_total"], arm["num_null"]) == (2, 1)


def test_a_finished_run_asks_nothing_and_needs_no_key(small, monkeypatch, capsys):
    alpaca.main(arguments(small, "--yes"))
    monkeypatch.delenv("OPENAI_API_KEY")
    alpaca.main(arguments(small))
    assert small[1].answered.total() == 3
    assert "0 judge calls" in capsys.readouterr().err


def test_nulls_of_the_judge_are_counted_and_shown(small, capsys):
    recording = dict(small[1].recordings["two"])
    small[1].recordings["two"] = {**recording, "logprobs": None}
    alpaca.main(arguments(small, "--yes"))
    arm = json.loads((small[0] / "out" / "alpaca.json").read_text())["arms"]["mine"]
    assert (arm["n_total"], arm["num_instructions"]) == (2, 3)
    assert arm["num_null"] == 1
    assert "mine: 1 of 3 without a preference" in " ".join(capsys.readouterr().out.split())


def test_the_password_of_an_endpoint_is_shown_and_kept_nowhere(small, capsys):
    folder, server = small
    url = server.url.replace("//", "//somebody:pass-word@")
    alpaca.main(arguments(small, "--yes", "--endpoint", url))
    printed = capsys.readouterr()
    server.refuse_all = (401, {"error": {"message": "not pass-word"}})
    (folder / "out" / "judge_answers.jsonl").unlink()
    error = scripts.refused(capsys, alpaca.main, arguments(small, "--yes", "--endpoint", url))
    assert "refused the key" in error
    alpaca_json = json.loads((folder / "out" / "alpaca.json").read_text())
    assert alpaca_json["judge"]["endpoint"] == f"{server.url}/"
    written = [path.read_text() for path in (folder / "out").rglob("*") if path.is_file()]
    assert len(written) > 4
    assert not any("pass-word" in text for text in [*printed, capsys.readouterr().out, error, *written])
    assert any(key.startswith("Basic ") for key in server.keys_seen)  # it was sent


def test_an_old_cache_with_damaged_lines_is_told_of_and_asked_again(small, capsys):
    alpaca.main(arguments(small, "--yes"))
    path = small[0] / "out" / "judge_answers.jsonl"
    first, second, third = path.read_text().splitlines()
    poisoned = json.dumps({**json.loads(second), "answer": {"choices": 5}})
    path.write_text(f"{first}\n{poisoned}\n{third[:40]}\n")
    capsys.readouterr()
    alpaca.main(arguments(small, "--yes"))
    printed = " ".join(capsys.readouterr().err.split())
    assert "1 damaged lines, whose answers are asked again" in printed
    assert "2 judge calls" in printed
    assert small[1].answered.total() == 5
    alpaca.main(arguments(small))
    assert small[1].answered.total() == 5


def test_names_in_brackets_do_not_crash_a_finished_evaluation(small, capsys):
    """Rich would have taken `[/b]` for markup."""
    folder, _ = small
    for name in ("mine", "reference"):
        rows = [{"instruction": n, "output": f"{name} {n}", "generator": "[b]$x^{$"} for n in NAMES]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    out = folder / "[" / "b]"
    alpaca.main(arguments(small, "--yes", "--output", str(out)))
    assert "[b]$x^{$" in capsys.readouterr().out
    assert (out / "[b]$x^{$" / "annotations.json").is_file()


def test_nothing_is_spent_without_consent(small, capsys):
    assert "add --yes to agree" in scripts.refused(capsys, alpaca.main, arguments(small))
    assert small[1].answered.total() == 0


class Keyboard(io.StringIO):
    """Somebody at a terminal."""

    def isatty(self):
        return True


def test_consent_is_asked_for(small, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Keyboard("n\n"))
    with pytest.raises(SystemExit, match="2"):
        alpaca.main(arguments(small))
    # On a terminal the answer's line break stands between the question and this line.
    assert capsys.readouterr().err.endswith("error: nothing was asked of the judge\n")
    assert small[1].answered.total() == 0
    monkeypatch.setattr(sys, "stdin", Keyboard("y\n"))
    alpaca.main(arguments(small))
    assert small[1].answered.total() == 3


def test_every_connection_to_the_judge_is_closed(small, monkeypatch):
    """What is left to the garbage collector warns of an open socket, in whatever test runs then."""
    made, build = [], openai.OpenAI
    monkeypatch.setattr(openai, "OpenAI", lambda **options: made.append(build(**options)) or made[-1])
    alpaca.main(arguments(small, "--yes"))
    assert len(made) == 2
    assert all(client.is_closed() for client in made)


def test_an_interruption_keeps_the_answers_and_the_handler_of_before(small, capsys):
    before = signal.getsignal(signal.SIGINT)
    small[1].on_answer = lambda count: count == 1 and os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        alpaca.main(arguments(small, "--yes", "--num_workers", "1"))
    assert stop.value.code == 130
    assert "every answer so far is kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    small[1].on_answer = lambda count: None
    alpaca.main(arguments(small, "--yes"))
    assert len(small[1].answered) == 3
    assert small[1].answered.total() <= 4  # the one that was in flight may be asked again
    assert signal.getsignal(signal.SIGINT) is before


def own_judge(path):
    """Write a configuration whose annotator has the leaderboard's name."""
    package = Path(constants.EVALUATORS_CONFIG_DIR) / OFFICIAL_ANNOTATOR / "configs.yaml"
    config = yaml.safe_load(package.read_text())[OFFICIAL_ANNOTATOR]
    config["prompt_template"] = str(package.parents[1] / config["prompt_template"])
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({OFFICIAL_ANNOTATOR: config}))
    return str(path)


def test_anothers_annotator_does_not_pass_for_the_leaderboards(small):
    """Runs with `--outputs` too: a file may call its annotator what it likes."""
    judge = own_judge(small[0] / "judge.yaml")
    alpaca.main(arguments(small, "--yes", "--annotator", judge))
    report = json.loads((small[0] / "out" / "alpaca.json").read_text())
    assert f"{judge} is not the leaderboard's" in report["not_comparable"]
    assert report["judge"]["endpoint"] == f"{small[1].url}/"


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
        "mine.json: File exists; give a folder": [*good, "--output", str(folder / "mine.json")],
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


def test_a_submission_that_the_leaderboard_would_refuse_is_not_begun(recipe, small, monkeypatch, capsys):
    """Neither with three instructions, nor with a judge that took the leaderboard's name in this folder."""
    monkeypatch.setattr(alpaca, "decode_systems", lambda *_: pytest.fail("something was decoded"))
    argv = [*recipe, "--submission", "--pretty_name", "Mine", "--link", "https://example.org"]
    error = scripts.refused(capsys, alpaca.main, argv)
    assert "but the reference is not the leaderboard's 805 answers" in error
    own_judge(small[0] / OFFICIAL_ANNOTATOR / "configs.yaml")
    monkeypatch.chdir(small[0])
    error = scripts.refused(capsys, alpaca.main, argv)
    assert f"{OFFICIAL_ANNOTATOR} of {small[0] / OFFICIAL_ANNOTATOR / 'configs.yaml'} is not" in error


def test_dropped_connections_lose_nothing(small):
    small[1].drops = 0.5
    alpaca.main(arguments(small, "--yes"))
    assert small[1].answered.total() == 3
    report = json.loads((small[0] / "out" / "alpaca.json").read_text())
    assert report["arms"]["mine"]["n_total"] == 3


def test_the_recipe_names_what_is_there():
    path = scripts.ROOT / "recipes" / "tulu" / "alpaca.yaml"
    options = parse_options(alpaca.Options, ["--config", str(path)], "")
    alpaca.check(options)
    assert options.annotator == OFFICIAL_ANNOTATOR
    assert config_from_dict(read_yaml(str(scripts.ROOT / options.decode))).pairs
    assert len(leaderboard(options.leaderboard)) == 4  # names that it does not know are refused
