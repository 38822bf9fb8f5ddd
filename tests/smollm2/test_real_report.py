"""The recipe's report: rewards, costs and the trade-off, by hand."""

import json

import pytest
import real_report

from ivg.errors import UserError
from ivg.evaluation.measures.decoded import Decoded, read_decoded

GOOD = 0.4404  # VADER's compound score of a sentence with "good"
PLAIN, PRAISE = "It is a day at sea.", "It is a good day."


def decoded(name, texts):
    rows = [
        {"id": f"test-{i}", "messages": [{"role": "user", "content": f"Q{i}"}], "response": text,
         "num_tokens": 5 + i, "finish_reason": "eos" if i else "length"}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return Decoded(name, rows, [row["id"] for row in rows])


def nll(rows):
    return [float(row["num_tokens"] * 2) for row in rows]


def test_methods_are_compared_by_every_judge():
    files = [decoded("base", [PLAIN, PLAIN]), decoded("ivg", [PLAIN, PRAISE])]
    report = real_report.compare_methods(files, nll)
    assert report["reference"] == "ivg"
    assert report["methods"]["ivg"]["gold_reward"]["mean"] == pytest.approx(GOOD / 2, abs=1e-4)
    assert report["paired"]["base"]["mean"] == pytest.approx(GOOD / 2, abs=1e-4)
    assert report["paired_also"]["TextBlob"]["base"]["mean"] == pytest.approx(0.35)  # good is 0.7
    assert report["methods"]["base"]["brevity"]["mean"] == 1
    assert report["methods"]["base"]["finished"]["mean"] == 1
    json.dumps(report, allow_nan=False)


def test_costs_are_those_of_one_prompt(tmp_path):
    file = decoded("base", [PLAIN, PRAISE])
    path = tmp_path / "base.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in file.rows))
    summary = {"num_tokens": 11, "seconds": 3.0, "tokens_fed": {"base": 20, "tuned": 30}, "flops": 4e9}
    (tmp_path / "base.jsonl.manifest.json").write_text(json.dumps({"summary": summary}))
    cost, seconds = real_report.costs([read_decoded("base", path)])
    ended = {"eos": 0.5, "length": 0.5}
    expected = {"base_tokens_fed": 10.0, "tokens_fed": 25.0, "gflop": 2.0, "finish_reasons": ended}
    assert cost == {"base": expected}
    assert seconds == {"base": 1.5}


def test_the_trade_off_has_both_rewards_at_every_point(tmp_path):
    texts = {(0, 0): [PLAIN, PLAIN], (1, 0): [PRAISE, PRAISE], (1, 0.5): [PRAISE, PLAIN]}
    for (tone, brevity), answers in texts.items():
        file = decoded("point", answers)
        path = tmp_path / f"tone-{tone:g}-brevity-{brevity:g}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in file.rows))
    report = real_report.trade_off(real_report.read_points(tmp_path), nll)
    assert [point["betas"] for point in report["points"]] == [[0, 0], [1, 0], [1, 0.5]]
    means = [[reward["mean"] for reward in point["rewards"]] for point in report["points"]]
    assert means == [
        [0.0, 1.0],
        [pytest.approx(GOOD, abs=1e-4), 1.0],
        [pytest.approx(GOOD / 2, abs=1e-4), 1.0],
    ]
    assert report["points"][0]["distance_from_base"]["mean"] == 0
    assert set(report["points"][0]["also"]) == {"TextBlob", "finished"}


def test_what_the_guides_know_stands_beside_the_full_report(tmp_path):
    runs = tmp_path / "full"
    runs.mkdir()

    def known(mean, low, high):
        return [{"percent": 50, "pairwise_accuracy": {"mean": mean, "ci95": [low, high], "n": 288}}]

    for name in ("accuracy_tone", "accuracy_brevity"):
        scorers = {"pair, summed": known(0.5, 0.45, 0.55), "value": known(0.7, 0.65, 0.75)}
        (tmp_path / name).mkdir()
        (tmp_path / name / "reward_accuracy.json").write_text(json.dumps({"scorers": scorers}))
    rewards = {
        "token_implicit": {"mean": 0.1, "ci95": [0, 0.2], "n": 200},
        "chunk_explicit": {"mean": 0.3, "ci95": [0.2, 0.4], "n": 200},
    }
    real_report.write_accuracies(tmp_path, runs, rewards)
    found = {
        name: json.loads((runs / name / "reward_accuracy.json").read_text())
        for name in ("accuracy_tone", "accuracy_brevity")
    }
    assert found["accuracy_tone"]["prediction"]["holds"] is True  # the value model, and its method
    assert "prediction" not in found["accuracy_brevity"]
    assert found["accuracy_brevity"]["scorers"]["value"] == known(0.7, 0.65, 0.75)


def test_a_report_without_decoding_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"has no decode\.stamp; run recipes/smollm2/real\.py"):
        real_report.weights_check(tmp_path, tmp_path / "model.safetensors")
