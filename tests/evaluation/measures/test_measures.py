import math

import pytest

from ivg.errors import UserError
from ivg.evaluation.measures.decoded import Decoded
from ivg.evaluation.measures.measures import compare, measure, missing_reasons


def decoded(name, texts, tokens=(2, 4)):
    rows = [
        {"prompt": "p", "response": text, "num_tokens": length}
        for text, length in zip(texts, tokens, strict=True)
    ]
    return Decoded(name, rows, ["a", "b"])


def methods():
    return {
        "base": measure(decoded("base", ["x y x", "x y"]), [1.0, 2.0], [10.0, 20.0]),
        "ivg": measure(decoded("ivg", ["x x x x", "x y"]), [4.0, 3.0], [13.0, 25.0]),
    }


def test_every_measure_by_hand():
    report = compare(methods(), base="base", reference="ivg")
    ivg = report["methods"]["ivg"]
    assert ivg["gold_reward"]["mean"] == 3.5
    assert ivg["distance_from_base"]["mean"] == 4  # (3 + 5) / 2 nats
    assert ivg["distance_per_token"]["mean"] == (3 / 2 + 5 / 4) / 2
    assert ivg["distinct_1"]["mean"] == (1 / 4 + 1) / 2
    assert ivg["distinct_2"]["mean"] == pytest.approx((1 / 3 + 1) / 2)
    assert ivg["num_tokens"]["mean"] == 3
    assert ivg["num_characters"]["mean"] == (7 + 3) / 2
    assert report["methods"]["base"]["distance_from_base"]["mean"] == 0
    assert report["paired"]["base"]["mean"] == 2  # (3 + 1) / 2
    assert report["win_rates"]["base"]["mean"] == 1


def test_further_scores_are_compared_on_the_same_prompts():
    found = {
        name: measure(decoded(name, ["x", "y"]), [1.0, 2.0], also={"valid": valid})
        for name, valid in {"base": [0.0, 1.0], "ivg": [1.0, 1.0]}.items()
    }
    report = compare(found, reference="ivg", also=["valid"])
    assert report["also"] == ["valid"]
    assert report["methods"]["base"]["valid"]["mean"] == 0.5
    assert report["paired_also"]["valid"]["base"]["mean"] == 0.5
    with pytest.raises(UserError, match="'num_tokens' is the name of another measure"):
        measure(decoded("m", ["x", "y"]), [1.0, 2.0], also={"num_tokens": [1.0, 2.0]})


def test_without_a_base_there_is_no_distance():
    report = compare(methods())
    assert "distance_from_base" not in report["methods"]["ivg"]
    assert report["reference"] == "ivg"  # the last, unless named


def test_a_measure_that_no_response_has_is_null():
    one_word = {"m": measure(decoded("m", ["x", "y"]), [1.0, 2.0])}
    assert compare(one_word)["methods"]["m"]["distinct_2"] is None


def test_rows_without_a_length_have_no_length():
    rows = [{"prompt": "p", "response": "x y"}]
    assert "num_tokens" not in measure(Decoded("m", rows, ["a"]), [1.0])


def test_missing_rewards_are_counted_with_their_reason():
    file = decoded("m", ["", "x y"])
    assert missing_reasons(file, [math.nan, math.nan]) == {
        "empty response": 1,
        "the reward model gave no number": 1,
    }
    report = compare({"m": measure(file, [math.nan, 2.0])})
    assert report["methods"]["m"]["gold_reward"]["missing"] == 1


def test_a_method_without_any_reward_is_an_error():
    with pytest.raises(UserError, match="none of its 2 prompts has a gold reward"):
        compare({"m": measure(decoded("m", ["x", "y"]), [math.nan, math.nan])})


@pytest.mark.parametrize("role", ["base", "reference"])
def test_an_unknown_method_is_named(role):
    with pytest.raises(UserError, match=f"{role} 'nobody' is not among the methods base, ivg"):
        compare(methods(), **{role: "nobody"})
