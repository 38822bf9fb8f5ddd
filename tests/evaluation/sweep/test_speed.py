"""What is said of the claim that chunk guidance costs less, on costs that can be worked out by hand."""

import pytest

from ivg.evaluation.sweep.speed import compare_costs, costs_table, findings


def run(method, length, seconds, fed, guides):
    token, chunk = {"base": ("none", "none"), "token_implicit": ("implicit", "none")}.get(
        method, ("none", "explicit")
    )
    return {
        "method": method, "setting": "", "token_guidance": token, "chunk_guidance": chunk,
        "max_new_tokens": length, "seconds_per_prompt": seconds, "base_tokens_fed": fed,
        "guide_tokens_fed": guides, "num_prompts": 8,
    }  # fmt: skip


RUNS = [
    run("base", 9, 0.5, 100, 0),
    run("token_implicit", 9, 1.0, 100, 200),
    run("chunk_explicit", 9, 2.0, 800, 800),
    run("token_implicit", 18, 2.0, 200, 400),
    run("chunk_explicit", 18, 6.0, 1600, 1600),
]


def test_costs_are_compared_length_by_length():
    short, long = compare_costs(RUNS)
    assert (short.seconds, short.tokens_fed, short.seconds_per_token) == (2.0, 8.0, 0.25)
    assert (long.seconds, long.tokens_fed, long.seconds_per_token) == (3.0, 8.0, 0.375)
    assert short.guide_tokens == (1.0, 2.0)
    assert costs_table(RUNS).rows == [
        ["chunk guidance", "9", "2.00×", "8.00×", "0.25×", "1.0 against 2.0", "8"],
        ["chunk guidance", "18", "3.00×", "8.00×", "0.38×", "1.0 against 2.0", "8"],
    ]


def test_both_readings_of_the_claim_are_stated():
    assert findings(RUNS) == [
        "Per prompt, chunk guidance costs more than token guidance: 2.00 to 3.00 times the seconds, at 8.00 "
        "times the tokens fed to the base. Per token fed to the base it costs less: 0.25 to 0.38 times the "
        "seconds."
    ]


@pytest.mark.parametrize("missing", ["token_implicit", "chunk_explicit"])
def test_without_either_kind_nothing_is_claimed(missing):
    runs = [run for run in RUNS if run["method"] != missing]
    assert findings(runs) == []
    assert costs_table(runs) is None


def test_a_ratio_around_one_is_no_verdict():
    runs = [*RUNS[:3], RUNS[3], {**RUNS[4], "seconds_per_prompt": 1.0}]
    assert "costs less or more, by length, than token guidance: 0.50 to 2.00 times" in findings(runs)[0]
