import itertools

from matplotlib.text import Text

from ivg.evaluation.measures.statistics import estimate
from ivg.evaluation.report import figures, frontiers
from ivg.evaluation.report.page import describe

REWARD = estimate([0.0, 1.0, 2.0]).as_dict()


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_rewards_are_drawn_where_they_are_with_their_interval():
    figure = figures.reward_by_method({"base": REWARD, "ivg": REWARD}, unit="compound score")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "mean gold reward (compound score)"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["base", "IVG"]
    (bar,) = axes.containers[1].lines[2]
    (left, _), (right, _) = bar.get_segments()[0]
    assert [left, right] == REWARD["ci95"]
    assert "n = 3 prompts" in texts(figure)


def test_the_frontier_labels_axes_and_settings():
    points = [frontiers.FrontierPoint("ivg", f"β={b}", b, REWARD) for b in (1.0, 2.0)]
    figure = frontiers.frontier(points, unit="logit", xlabel="distance from the base (nats)", log_x=True)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "distance from the base (nats)"
    assert axes.get_ylabel() == "mean gold reward (logit)"
    assert axes.get_xscale() == "log"
    assert {"β=1.0", "β=2.0"} <= {text.get_text() for text in axes.texts}
    assert list(axes.containers[0].lines[0].get_xdata()) == [1.0, 2.0]


def test_a_single_score_is_drawn_without_interval():
    figure = figures.reward_by_method({"base": estimate([1.0]).as_dict()}, unit="logit")
    (bar,) = figure.axes[0].containers[0].lines[2]
    assert bar.get_segments()[0].tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_the_same_data_gives_the_same_file(tmp_path):
    for name in ("one.png", "two.png"):
        figures.save_png(figures.reward_by_method({"base": REWARD}, unit="logit"), tmp_path / "new" / name)
    assert (tmp_path / "new/one.png").read_bytes() == (tmp_path / "new/two.png").read_bytes()


def test_dollar_signs_are_no_formula(tmp_path):
    """`$x^{$` in a method's name crashed the report."""
    name, estimate_of_one = "$x^{$ and $y$", REWARD
    points = [frontiers.FrontierPoint(name, "$\\frac{$", 1.0, estimate_of_one)] * 2
    drawn = [
        figures.reward_by_method({name: REWARD}, unit="$x^{$"),
        frontiers.frontier(points, unit="$x^{$", xlabel="$x^{$"),
    ]
    for figure in drawn:
        figures.save_png(figure, tmp_path / "x.png")
        assert name in describe(figure)
        assert "$x^{$" in describe(figure)


def test_the_value_models_figures_are_drawn_by_one_hand(tmp_path):
    bins = [{"value": 0.0, "reward": 0.1, "count": 5}, {"value": 1.0, "reward": 0.9, "count": 5}]
    row = {"percent": 50, "rank_correlation": 0.5, "pairwise_accuracy": 0.7, "num_responses": 10}
    table = [{**row, "calibration": bins}]
    quality = figures.value_quality(table).axes[0]
    assert [line.get_ydata().tolist() for line in quality.get_lines()] == [[0.5], [0.7]]
    assert quality.get_ylabel() == "agreement with the final reward (1: perfect)"
    calibration = figures.value_calibration(table, unit="logit").axes[0]
    assert calibration.get_lines()[0].get_xdata().tolist() == [0.0, 1.0]
    assert "n = 10 held-out responses" in texts(figures.value_quality(table))


def test_a_further_score_has_a_figure_of_its_own_that_names_it():
    figure = figures.score_by_method({"base": REWARD, "ivg": REWARD}, name="mean TextBlob")
    assert [axes.get_xlabel() for axes in figure.axes] == ["mean TextBlob"]
    assert describe(figure).startswith("Chart: mean TextBlob. base, IVG.")


def sweep_run(name, method, setting, x):
    measured = {"gold_reward": REWARD, "distance_from_base": {"mean": x}}
    return {"name": name, "method": method, "setting": setting}, measured


def test_a_line_joins_runs_that_differ_in_one_thing_for_which_w_and_k_count_together():
    found = [
        sweep_run("a", "ivg", "β=1, W=2 K=2 L=8", 1.0),
        sweep_run("b", "ivg", "β=2, W=2 K=2 L=8", 2.0),
        sweep_run("c", "chunk_explicit", "W=2 K=2 L=8", 3.0),
        sweep_run("d", "ivg", "β=1, W=4 K=4 L=8", 4.0),
        sweep_run("e", "chunk_explicit", "W=4 K=4 L=8", 5.0),
    ]
    report = {
        "cells": [run for run, _ in found],
        "methods": {
            run["name"]: {**measured, "gold_reward": {**REWARD, "missing": 0}} for run, measured in found
        },
        "cost": {run["name"]: {"flops_per_prompt": 1e9, "tokens_fed": {"base": 5}} for run, _ in found},
        "reward": "tone",
    }
    (axes,) = frontiers.sweep_frontiers(report)["frontier_distance"].axes
    lines = [line.get_xdata() for line in axes.get_lines() if line.get_linestyle() == "-"]
    assert sorted(map(list, lines)) == [[1.0, 2.0], [3.0, 5.0]]


def test_a_sweep_writes_the_first_further_score_in_brackets_and_says_so():
    found = [sweep_run("a", "base", "", 0.0), sweep_run("b", "ivg", "β=1", 1.0)]
    missing = {"gold_reward": {**REWARD, "missing": 0}}
    report = {
        "cells": [run for run, _ in found],
        "methods": {
            run["name"]: {**measured, **missing, "TextBlob": {"mean": 0.25 * i}}
            for i, (run, measured) in enumerate(found, start=1)
        },
        "also": ["TextBlob", "finished"],
        "cost": {run["name"]: {"flops_per_prompt": 1e9, "tokens_fed": {"base": 5}} for run, _ in found},
        "reward": "tone",
    }
    figure = frontiers.sweep_frontiers(report)["frontier_distance"]
    assert {"(0.25)", "β=1 (0.50)"} <= {text.get_text() for text in figure.axes[0].texts}
    assert "In brackets: mean TextBlob." in " ".join(texts(figure).split())


def test_labels_of_close_points_lie_inside_and_apart():
    points = [
        frontiers.FrontierPoint(f"method {i}", f"a rather long setting {i}", x, REWARD)
        for i, x in enumerate((1.0, 1.01, 1.02, 9.0))
    ]
    figure = frontiers.frontier(points, unit="logit", xlabel="nats")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that tie them
    assert len(boxes) == len(points)
    assert not [1 for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_the_trade_off_has_intervals_on_both_axes_and_a_line_for_each_second_weight():
    low, high = estimate([0.0, 0.5]).as_dict(), estimate([1.0, 2.0, 3.0]).as_dict()
    points = [
        {"betas": [first, second], "rewards": [low, high]} for second in (0, 2) for first in (0, 0.5, 1)
    ]
    figure = frontiers.trade_off({"names": ["tone", "brevity"], "points": points})
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("mean tone", "mean brevity")
    assert len(axes.containers) == 2
    across, upright = axes.containers[0].lines[2]
    assert across.get_segments()[0].tolist() == [[low["ci95"][0], 2.0], [low["ci95"][1], 2.0]]
    assert upright.get_segments()[0].tolist() == [[0.25, high["ci95"][0]], [0.25, high["ci95"][1]]]
    assert "brevity β=2" in texts(figure)
    assert "tone β=0.5" in texts(figure)
