"""The report: the keys that readers rely on, and numbers that can be checked by hand."""

import json

import pytest
import report
import review_reward

from ivg.errors import UserError
from ivg.evaluation.measures.decoded import Decoded

# VADER's compound score of one sentence: "good" has valence 1.9, and 1.9 / sqrt(1.9^2 + 15) = 0.4404.
GOOD = 0.4404
# A valid review of five sentences, three of which praise.
REVIEW = (
    " It is about a sailor and two brothers. The plot was good. The music was good. The cast was good. "
    "I may see it again on Friday."
)
LOWEST, HIGHEST = review_reward.quality_range()
QUALITY = (3 * GOOD / 5 - LOWEST) / (HIGHEST - LOWEST)


def decoded(name: str, texts: list[str], lengths: list[int]) -> Decoded:
    rows = [
        {
            "id": f"test-{i}",
            "prompt": f"Film {i}.",
            "response": text,
            "num_tokens": length,
            "finish_reason": "eos" if length < 9 else "length",
        }
        for i, (text, length) in enumerate(zip(texts, lengths, strict=True))
    ]
    return Decoded(name, rows, [row["id"] for row in rows])


@pytest.fixture
def compared():
    longer = REVIEW + " It was good."  # more praise, and no longer a review
    files = [
        decoded(method, [REVIEW, longer, " The plot was good."], [4, 5, 9]) for method in report.METHODS[:-1]
    ]
    files.append(decoded("ivg", [REVIEW, REVIEW, REVIEW], [6, 6, 6]))
    return report.compare_methods(files, lambda rows: [2.0 * row["num_tokens"] for row in rows])


def test_every_method_has_the_promised_keys(compared):
    names = {"base", "best_of_n", "token_implicit", "token_implicit_best_of_n", "chunk_explicit", "ivg"}
    assert set(compared["methods"]) == names
    for measures in compared["methods"].values():
        assert {"gold_reward", "valid", "VADER", "distance_from_base", "distinct_2", "num_tokens"} <= set(
            measures
        )
        assert {"mean", "stderr", "ci95", "n"} <= set(measures["gold_reward"])
        assert measures["gold_reward"]["n"] == 3
    assert set(compared["paired"]) == names - {"ivg"}
    assert {"mean", "stderr", "ci95", "n"} <= set(compared["paired"]["base"])
    json.dumps(compared, allow_nan=False)


def test_the_numbers_are_those_one_gets_by_hand(compared):
    base, ivg = compared["methods"]["base"], compared["methods"]["ivg"]
    # Rewards of the base: a review, and two texts that are none.
    assert base["gold_reward"]["mean"] == pytest.approx(QUALITY / 3)
    assert ivg["gold_reward"]["mean"] == pytest.approx(QUALITY)
    assert compared["paired"]["base"]["mean"] == pytest.approx(2 * QUALITY / 3)
    # The reward as it was pays for every sentence: 3/5, 4/6 and 1/1 of a praise.
    assert base["VADER"]["mean"] == pytest.approx((3 / 5 + 4 / 6 + 1) / 3 * GOOD, abs=1e-4)
    assert (base["valid"]["mean"], ivg["valid"]["mean"]) == (pytest.approx(1 / 3), 1)
    assert ivg["valid"]["ci95"] == [pytest.approx(3 / (3 + 1.959964**2)), 1]  # Wilson's
    assert compared["paired_also"]["valid"]["base"]["mean"] == pytest.approx(2 / 3)
    # Two nats a token: 2 x 6 against 2 x (4 + 5 + 9) / 3.
    assert ivg["distance_from_base"]["mean"] == pytest.approx(0.0)
    assert base["distance_from_base"]["mean"] == 0.0
    assert base["num_tokens"]["mean"] == pytest.approx(6.0)
    assert base["finished"] == pytest.approx(2 / 3)


def test_methods_on_different_prompts_are_refused():
    files = [decoded(method, [" Good."], [3]) for method in report.METHODS]
    files[2].rows[0]["id"] = files[2].ids[0] = "another"
    with pytest.raises(UserError, match="hold different prompts"):
        report.compare_methods(files, lambda rows: [1.0] * len(rows))


def test_changed_base_weights_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RUNS", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = report.hash_path(weights)
    (tmp_path / "stamps").mkdir()
    (tmp_path / "stamps" / "decode.stamp").write_text(
        json.dumps({"inputs": {str(weights): before}}), encoding="utf-8"
    )
    assert report.weights_check(weights) == {
        "sha256_before": before,
        "sha256_after": before,
        "identical": True,
    }
    weights.write_bytes(b"two")
    changed = report.weights_check(weights)
    assert not changed["identical"]
    assert changed["sha256_before"] == before != changed["sha256_after"]


def test_a_report_without_decoding_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RUNS", tmp_path)
    with pytest.raises(UserError, match=r"has no decode\.stamp; run recipes/quickstart/run\.py"):
        report.weights_check(tmp_path / "model.safetensors")
