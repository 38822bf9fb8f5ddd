from ivg.evaluation.measures.statistics import estimate
from ivg.evaluation.report import figures, frontiers

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
