import pytest
from rich.console import Console

from ivg.evaluation.measures.decoded import Decoded
from ivg.evaluation.measures.measures import compare, measure
from ivg.evaluation.measures.statistics import estimate, estimate_rate
from ivg.evaluation.report.tables import (
    Table,
    costs_by_method_table,
    divergence_table,
    interval,
    methods_table,
    one_reward_notes,
    paired_table,
    speed_table,
    trade_off_table,
)


def report():
    rows = [{"prompt": "p", "response": "x y x", "num_tokens": 3} for _ in range(3)]
    file = Decoded("m", rows, ["a", "b", "c"])
    methods = {
        "base": measure(file, [1.0, 2.0, 3.0], [9.0, 9.0, 9.0]),
        "ivg": measure(file, [2.0, 4.0, float("nan")], [10.0, 11.0, 12.0]),
    }
    return compare(methods, base="base", reference="ivg")


def test_methods_show_mean_interval_distance_and_missing():
    base, ivg = methods_table(report()).rows
    assert base[:3] == ["base", "2.000 [-0.484, 4.484]", "0.577"]
    assert base[-1] == "3"
    assert ivg[3].startswith("+2.0 [")
    assert ivg[-1] == "2 (1 missing)"


def test_the_pairing_is_signed_and_has_its_n():
    (row,) = paired_table(report()).rows
    assert row[0] == "base"
    assert row[1].startswith("+1.500 [")
    assert row[3:] == ["1.000 [0.342, 1.000]", "2"]


def test_scores_beside_the_gold_reward_have_columns_of_their_own():
    data = {**report(), "also": ["valid"]}
    for name, values in {"base": [1.0, 0.0, 1.0], "ivg": [1.0, 1.0, 1.0]}.items():
        data["methods"][name]["valid"] = estimate_rate(values).as_dict()
    table = methods_table(data)
    assert table.header[3] == "valid [95%]"
    # Wilson: (2/3 + z^2/6 -+ z sqrt(2/27 + z^2/36)) / (1 + z^2/3) with z = 1.959964
    assert [row[3] for row in table.rows] == ["0.667 [0.208, 0.939]", "1.000 [0.439, 1.000]"]


def test_one_reward_that_stands_alone_is_said_so():
    assert "--also NAME=DOTTED.NAME" in one_reward_notes(report())[0]
    assert one_reward_notes({**report(), "also": ["valid"]}) == []


def test_a_speed_comparison_has_the_same_columns():
    run = {
        "method": "base", "setting": "", "max_new_tokens": 9, "num_tokens": 3.0, "seconds_per_prompt": 0.5,
        "peak_memory_mib": None, "base_tokens_fed": 9, "guide_tokens_fed": 0,
        "gold_reward": estimate_rate([1.0, 0.0]).as_dict(),
    }  # fmt: skip
    assert speed_table({"runs": [run]}).header[-2:] == ["gold reward [95%]", "n"]
    beside = {"also": ["valid"], "runs": [{**run, "also": {"valid": estimate_rate([1.0, 1.0]).as_dict()}}]}
    table = speed_table(beside)
    assert table.header[-2:] == ["valid [95%]", "n"]
    # Wilson of 2 in 2: 1 / (1 + 3.841459 / 2) to 1.
    assert table.rows[0][-2:] == ["1.000 [0.342, 1.000]", "2"]


def test_divergences_are_shown_where_they_are_known():
    assert divergence_table(report()) is None
    data = report()
    data["methods"]["base"]["kl_bound"] = 1.834
    data["methods"]["ivg"]["kl_to_base"] = {"mean": 2.5, "ci95": [2.25, 2.75], "n": 3}
    bound, sampled = divergence_table(data).rows
    assert bound[:3] == ["base", "what it chose among", "at most 1.83"]
    assert (sampled[0], sampled[2], sampled[4]) == ("IVG", "2.50 [2.25, 2.75]", "3")


def test_a_mean_without_interval_stands_alone():
    assert interval({"mean": 0.5, "ci95": [None, None]}) == "0.500"
    assert interval(None) == "–"


def test_markdown_escapes_what_would_break_a_row():
    table = Table("t", ["a", "b"], [["x|y", "1\n2"]])
    assert table.markdown() == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |"


def test_the_console_table_holds_every_cell():
    table = Table("t", ["a", "b"], [["x", "1"], ["y", "2"]]).console()
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [["x", "y"], ["1", "2"]]


def test_the_console_table_shows_markup_and_escapes_as_they_are(capsys):
    """`[/b]` in a name crashed a finished evaluation, and an escape would have moved the cursor."""
    table = Table("[/b]", ["a", "[b]"], [["runs/[/red]:smile:", "\x1b[2J"]])
    Console(width=80).print(table.console())
    printed = capsys.readouterr().out
    for text in ("[/b]", "[b]", "runs/[/red]:smile:", r"\x1b[2J"):
        assert text in printed
    assert "\x1b[2J" not in printed


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("<script>x</script>", r"\<script>x\</script>"),
        ("\\<b>", r"\\\<b>"),  # a backslash of its own does not undo ours
        ("a < b", "a < b"),
        ("![x](http://a)", r"![x]\(http://a)"),
        ("\x1b[0m", r"\x1b[0m"),
    ],
)
def test_markdown_holds_no_html_and_no_links_of_others(cell, written):
    assert Table("t", ["a"], [[cell]]).markdown().splitlines()[-1] == f"| {written} |"


def test_costs_stand_by_method_with_how_answers_ended():
    assert costs_by_method_table(report()) is None
    fed = {"base_tokens_fed": 10.0, "tokens_fed": 25.0, "gflop": 2.0}
    cost = {
        "base": {**fed, "finish_reasons": {"eos": 1.0}},
        "ivg": {**fed, "finish_reasons": {"eos": 0.25, "length": 0.75}},
    }
    table = costs_by_method_table({"cost": cost, "timing": {"seconds_per_prompt": {"ivg": 1.5}}})
    assert table is not None
    assert table.header[-3:] == ["seconds", "ended by eos", "ended by length"]
    assert table.rows == [
        ["base", "10.0", "25.0", "2.0", "–", "100%", "0%"],
        ["IVG", "10.0", "25.0", "2.0", "1.50", "25%", "75%"],
    ]


def test_the_trade_off_shows_both_weights_and_both_rewards():
    one = estimate([1.0, 2.0, 3.0]).as_dict()
    point = {
        "betas": [0.5, 2],
        "rewards": [one, one],
        "also": {"judge": one},
        **dict.fromkeys(("distance_from_base", "distinct_2", "num_tokens"), one),
    }
    table = trade_off_table({"names": ["tone", "brevity"], "also": ["judge"], "points": [point]})
    both = "2.000 [-0.484, 4.484]"
    assert table.header[:5] == ["β of tone", "β of brevity", "tone [95%]", "brevity [95%]", "judge [95%]"]
    assert table.rows == [["0.5", "2", both, both, both, "+2.0 [-0.5, +4.5]", "2.000", "2.0", "3"]]
