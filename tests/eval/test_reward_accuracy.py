"""`ivg eval reward-accuracy` with tiny models, from the file to the report."""

import json

import pytest
from transformers import GPT2ForSequenceClassification

from ivg.evaluation.report.sections import collect
from tests import tiny
from tests.eval import scripts

script = scripts.load("reward_accuracy")

ROWS = [{"prompt": f"q {name}", "chosen": f"good {name}", "rejected": "bad"} for name in "abcdef"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def longer(rows, responses):
    return [len(text) for text in responses]


def test_every_scorer_at_once(tmp_path, data, capsys):
    classifier = GPT2ForSequenceClassification(tiny.gpt2_config(len(tiny.LETTERS) + 2, num_labels=1))
    flags = {
        "--tuned": tiny.save(tmp_path / "tuned", tiny.causal(1)),
        "--untuned": tiny.save(tmp_path / "untuned", tiny.causal(2)),
        "--value": tiny.save(tmp_path / "value", tiny.value(3, num_labels=1)),
        "--model": tiny.save(tmp_path / "reward", classifier),
        "--function": "tests.eval.test_reward_accuracy.longer",
        "--data": data,
        "--output": str(tmp_path / "out"),
    }
    script.main([text for flag in flags.items() for text in flag])
    report = json.loads((tmp_path / "out" / "reward_accuracy.json").read_text())
    function, model = f"function {flags['--function']}", f"reward model {flags['--model']}"
    assert set(report["scorers"]) == {"pair, summed", "pair, per token", "value", function, model}
    assert report["scorers"][function][-1]["pairwise_accuracy"]["mean"] == 1
    assert report["scorers"][function][0]["pairwise_accuracy"] is None
    assert all(row["pairwise_accuracy"]["n"] == 6 for row in report["scorers"]["pair, summed"])
    assert (tmp_path / "out" / "reward_accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "How often the better response has the higher score" in capsys.readouterr().out
    (section,) = collect(tmp_path / "out", num_samples=0)
    assert set(section.figures) == {"reward_accuracy"}
    # Pair and value at four places each, the other two at the end.
    assert len(section.tables[0].rows) == 3 * 4 + 2


BAD = [
    ([], "nothing to measure"),
    (["--tuned", "x"], "a pair needs --tuned and --untuned"),
    (["--function", "tests.eval.test_reward_accuracy.longer", "--batch_size", "0"], "batch_size is 0"),
    (["--function", "no.such"], "cannot import no"),
    (["--value", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_options_are_one_line(tmp_path, data, capsys, flags, message):
    argv = ["--data", data, "--output", str(tmp_path / "out"), *flags]
    assert message in scripts.refused(capsys, script.main, argv)


def test_a_classifier_as_a_value_model_is_sent_to_its_own_flag(tmp_path, data, capsys):
    classifier = GPT2ForSequenceClassification(tiny.gpt2_config(len(tiny.LETTERS) + 2, num_labels=1))
    argv = ["--data", data, "--output", str(tmp_path / "out")]
    argv += ["--value", tiny.save(tmp_path / "reward", classifier)]
    assert "give it as --model" in scripts.refused(capsys, script.main, argv)
