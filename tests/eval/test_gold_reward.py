import json
import math

import pytest

from tests.eval import scripts
from tests.evaluation import tiny

gold_reward = scripts.load("gold_reward")


@pytest.fixture
def files(tmp_path):
    """Two decoded files over the same two prompts, and a base that knows their words."""
    texts = {"base": ["w3 w4", "w5 w5"], "ivg": ["w6 w7 w8", "w9"]}
    for name, responses in texts.items():
        rows = [
            {"id": i, "prompt": f"w{i}", "response": text, "num_tokens": len(text.split()) + 1}
            for i, text in enumerate(responses)
        ]
        lines = "".join(json.dumps({**row, "finish_reason": "eos"}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.model().save_pretrained(tmp_path / "model")
    return tmp_path


def number_of_words(rows, responses):
    """A reward that can be worked out by looking."""
    return [float(len(text.split())) for text in responses]


def no_reward_for_one_word(rows, responses):
    return [len(text.split()) if " " in text else float("nan") for text in responses]


def run(files, *more, reward="number_of_words"):
    named = [f"{name}={files / name}.jsonl" for name in ("base", "ivg")]
    options = ["--function", f"{__name__}.{reward}", "--output", str(files / "out.json")]
    gold_reward.main(["--files", *named, *options, *map(str, more)])
    return json.loads((files / "out.json").read_text(encoding="utf-8"))


def test_rewards_lengths_and_pairs_by_hand(files, capsys):
    report = run(files)
    assert report["methods"]["base"]["gold_reward"]["mean"] == 2
    assert report["methods"]["ivg"]["gold_reward"]["mean"] == 2
    assert report["methods"]["ivg"]["num_tokens"]["mean"] == 3
    assert report["paired"]["base"]["mean"] == 0  # 3 - 2 and 1 - 2
    assert report["paired"]["base"]["n"] == 2
    assert report["win_rates"]["base"]["mean"] == 0.5
    printed = capsys.readouterr().out
    assert "Gold reward by method" in printed
    assert "IVG against the others" in printed


def test_the_distance_is_zero_for_the_base_and_not_for_others(files):
    report = run(files, "--base", files / "model")
    assert report["methods"]["base"]["distance_from_base"]["mean"] == 0
    assert abs(report["methods"]["ivg"]["distance_from_base"]["mean"]) > 0.1


def test_divergence_where_it_can_be_known(files):
    pair = ["--base", files / "model", "--tuned", files / "model", "--untuned", files / "model"]
    report = run(files, *pair, "--kl_of", "ivg", "--best_of", "base=4")
    assert report["methods"]["ivg"]["kl_to_base"]["mean"] == pytest.approx(0, abs=1e-6)  # equal twins
    assert report["methods"]["ivg"]["kl_to_base"]["n"] == 2
    assert report["methods"]["base"]["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)


def test_a_missing_reward_is_counted_and_said(files, capsys):
    report = run(files, reward="no_reward_for_one_word")
    assert report["methods"]["ivg"]["gold_reward"]["missing"] == 1
    assert report["methods"]["ivg"]["missing"] == {"the reward model gave no number": 1}
    assert report["paired"]["base"]["n"] == 1
    assert "ivg: 1 of 2 responses without a reward" in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(files, capsys):
    base = f"base={files / 'base.jsonl'}"
    reward = ["--function", "ivg.rewards.vader"]
    other = files / "other.jsonl"
    other.write_text('{"id": 5, "prompt": "w1", "response": "w2"}\n', encoding="utf-8")
    cases = {
        "no files": reward,
        "unknown argument '--file'; did you mean 'files'": ["--file", base],
        "expected NAME=FILE.jsonl": [files / "base.jsonl", *reward],
        "two files have the same name": [base, base, *reward],
        "hold different prompts": [base, f"other={other}", *reward],
        "exactly one of a function's dotted name": [base],
        "not a model folder or Hub name": [base, *reward, "--base", files],
        "kl_of names one of the files": [base, *reward, "--kl_of", "base"],
        "best_of: got 'base=x'": [base, *reward, "--best_of", "base=x"],
        "must be among the files": [base, *reward, "--best_of", "other=4"],
        "its folder does not exist": [base, *reward, "--output", files / "absent" / "out.json"],
        "reference 'x' is not among the files base": [base, *reward, "--reference", "x"],
    }
    for message, argv in cases.items():
        flags = argv if str(argv[0]).startswith("--") else ["--files", *argv]
        assert message in scripts.refused(capsys, gold_reward.main, flags)
