"""`ivg eval judge` over loopback: recordings of three systems, judges that are known."""

import json
import random
import re

import pytest

from ivg.evaluation.report.sections import collect
from tests.eval import scripts
from tests.eval.judge_server import ReplayJudge

OUTPUTS = re.compile(r'"output": """(.*?)"""', re.DOTALL)
SYSTEMS = {"weak": 0.1, "middling": 0.5, "strong": 0.9}
NUM = 40

judge = scripts.load("judge")


class KnownJudge(ReplayJudge):
    """Answers by a function of instruction and the two answers as shown: `m` for the first, `M`, or other."""

    def __init__(self, answer):
        super().__init__({})
        self.answer = answer

    def completion(self, request):
        outputs = OUTPUTS.findall(request["messages"][-1]["content"])
        name = self.answer(self.instruction(request), *outputs[-2:])
        top = {"token": name, "bytes": None, "logprob": -1e-6}
        self.recordings[self.instruction(request)] = {
            "index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": name},
            "logprobs": {"content": [{**top, "top_logprobs": [top]}]},
        }  # fmt: skip
        return super().completion(request)


def write_recordings(folder, truth=None):
    rng = random.Random(0)
    for system, rate in SYSTEMS.items():
        rows = [
            {
                "instruction": f"question {i}", "output_1": f"reference {i}", "output_2": f"{system} {i}",
                "generator_1": "reference", "generator_2": system, "annotator": "somebody",
                "preference": 2.0 if rng.random() < rate else 1.0,
            }
            for i in range(NUM)
        ]  # fmt: skip
        (folder / system).mkdir(parents=True)
        (folder / system / "annotations.json").write_text(json.dumps(rows))
        for row in rows if truth is not None else ():
            truth[row["instruction"], row["output_2"]] = row["preference"] == 2.0
    return folder


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-something")
    truth = {}
    folder = write_recordings(tmp_path / "recorded", truth)

    def run(answer, *flags):
        with KnownJudge(answer) as server:
            judge.main(
                [
                    "--recordings", str(folder), "--endpoint", server.url, "--output", str(tmp_path / "out"),
                    "--judge_model", "known", "--yes", *flags,
                ]
            )  # fmt: skip
        return json.loads((tmp_path / "out" / "judge.json").read_text()), server

    return run, truth


def as_recorded(truth, question, first, second):
    system = second if first.startswith("reference") else first
    return "M" if truth[question, system] == (system == second) else "m"


def test_the_recorded_judge_itself(setting, capsys):
    run, truth = setting
    found, server = run(lambda *shown: as_recorded(truth, *shown))
    assert found["agreement"]["mean"] == found["kappa"]["mean"] == found["rank_correlation"]["mean"] == 1
    assert found["position_bias"]["mean"] == pytest.approx(0, abs=1e-4)
    assert found["recorded_judge"] == "somebody"
    assert (found["num_comparisons"], found["num_instructions"]) == (3 * NUM, NUM)
    # Both orders, and the first again: each paid for once, the same question twice.
    assert server.answered.total() == 3 * 3 * NUM
    assert sorted(server.answered.values()) == [1] * 3 * NUM + [2] * 3 * NUM
    printed, costs = (" ".join(text.split()) for text in capsys.readouterr())
    assert "360 judge calls to known" in costs
    assert "Verdict: agrees with the recorded judge beyond chance (kappa 1.00 [1.00, 1.00])." in printed
    again, server = run(lambda *_: "m")
    assert server.answered.total() == 3 * 3 * NUM  # another endpoint: other answers
    assert again["verdict"].startswith("useless")


def test_four_fifths_recorded_and_a_fifth_coin(setting):
    run, truth = setting
    rng = random.Random(7)

    def answer(*shown):
        return as_recorded(truth, *shown) if rng.random() < 0.8 else rng.choice("mM")

    found, _ = run(answer, "--num_workers", "1", "--repeats", "0")
    share = sum(truth.values()) / len(truth)
    judges_share = 0.8 * share + 0.1
    by_chance = share * judges_share + (1 - share) * (1 - judges_share)
    low, high = found["kappa"]["ci95"]
    assert low <= (0.9 - by_chance) / (1 - by_chance) <= high
    low, high = found["position_bias"]["ci95"]
    assert low <= 0 <= high


def test_a_judge_that_always_names_the_first(setting, capsys):
    run, _ = setting
    found, _ = run(lambda *_: "m", "--num_instructions", "10", "--repeats", "0")
    assert found["verdict"].startswith("useless")
    assert found["position_bias"]["mean"] == pytest.approx(0.5)
    assert found["order_flips"]["mean"] == 1
    assert found["repeat_flips"] is None
    assert (found["num_comparisons"], found["num_instructions"]) == (30, 10)
    assert "favours the answer shown first" in " ".join(capsys.readouterr().out.split())


def test_garbage_is_useless(setting):
    run, _ = setting
    found, _ = run(lambda *_: "?", "--num_instructions", "2")
    assert found["verdict"] == "useless: none of its 18 answers holds a preference"


BAD = [
    ([], "no recordings; give --recordings"),
    (["--recordings", "missing.json"], "missing.json: No such file"),
    (["--recordings", "empty"], "empty: no annotations.json in it"),
    (["--recordings", "recorded", "recorded/weak/annotations.json"], "two files hold comparisons of 'weak'"),
    (["--recordings", "recorded", "--num_instructions", "41"], "only 40 are recorded; give fewer"),
    (["--recordings", "recorded", "--num_instructions", "0"], "num_instructions is 0"),
    (["--recordings", "recorded", "--repeats", "-1"], "repeats is -1"),
    (["--recordings", "bad.json"], "bad.json, annotation 1: no string 'output_1'"),
    (["--recordings", "high.json"], "preference is 7; expected a number from 1 to 2, or null"),
    (["--recordings", "nulls.json"], "none of the 1 annotations holds a preference"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_recordings_are_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    write_recordings(tmp_path / "recorded")
    (tmp_path / "empty").mkdir()
    row = {"instruction": "a", "output_1": "x", "output_2": "y", "generator_2": "mine"}
    for name, rows in (
        ("bad", [{"instruction": "a"}]),
        ("high", [{**row, "preference": 7}]),
        ("nulls", [{**row, "preference": None}]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    assert message in scripts.refused(capsys, judge.main, ["--output", "out", *flags])


def test_a_report_shows_the_measures(setting, tmp_path):
    run, truth = setting
    run(lambda *shown: as_recorded(truth, *shown), "--num_instructions", "5", "--repeats", "0")
    (section,) = collect(tmp_path / "out", num_samples=1)
    written = "\n".join([*section.notes, *section.text, *(table.markdown() for table in section.tables)])
    assert "Cohen's kappa | 1.000 [1.000, 1.000] | 5 |" in written
    assert "Verdict: agrees with the recorded judge beyond chance" in written
    assert "variance of an answer when asked again | – | – |" in written
