"""The page: what it says, that it stands alone, and that people who cannot see it can read it."""

import json
import re
from html.parser import HTMLParser

import pytest

from ivg.evaluation.measures.statistics import estimate
from ivg.evaluation.report import figures, frontiers
from ivg.evaluation.report.page import describe, html, markdown, typeset
from ivg.evaluation.report.sections import Section, collect, verdict
from ivg.evaluation.report.tables import Table

REWARD = estimate([0.0, 1.0, 2.0]).as_dict()
VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Collects elements, and fails where tags do not nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def section():
    table = Table("Rewards", ["method", "reward", "n"], [["a<b", "-0.5", "3"], ["ivg", "1", "3"]], group_by=0)
    drawn = {"rewards": figures.reward_by_method({"base": REWARD}, unit="logit")}
    return Section("Gold & reward", ["It fell by -0.5."], [table], drawn, notes=["Small print."])


def test_the_page_nests_and_fetches_nothing(section):
    page = html("A title", [section])
    outline = Outline(page)
    assert [tag for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)] == ["h1", "h2", "h3"]
    assert "://" not in page
    assert not outline.all("script")
    assert not outline.all("link")
    assert all(image["src"].startswith("data:image/png;base64,") for image in outline.all("img"))


def test_tables_scroll_in_a_box_that_a_keyboard_reaches(section):
    outline = Outline(html("A title", [section]))
    (box,) = [attrs for attrs in outline.all("div") if attrs.get("class") == "scroll"]
    assert box == {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "Rewards"}
    assert [th["scope"] for th in outline.all("th")] == ["col", "col", "col", "row", "row"]
    assert [tr.get("class") for tr in outline.all("tr")] == [None, None, "group"]


def test_a_figure_is_described_by_axes_methods_and_caption(section):
    (image,) = Outline(html("A title", [section])).all("img")
    assert image["alt"] == (
        "Chart: mean gold reward (logit). base. n = 3 prompts; bars are 95% intervals of the mean."
    )
    points = [frontiers.FrontierPoint(method, "", x, REWARD) for method, x in (("base", 1.0), ("ivg", 2.0))]
    said = describe(frontiers.frontier(points, unit="logit", xlabel="nats"))
    assert said.startswith("Chart: mean gold reward (logit) against nats. base, IVG. n = 3 prompts")


def test_the_markdown_has_all_of_it(section, tmp_path):
    text = markdown("A title", [section], tmp_path)
    (image,) = Outline(html("A title", [section])).all("img")
    assert f"![{image['alt']}](figures/rewards.png)" in text
    assert (tmp_path / "figures" / "rewards.png").stat().st_size > 1000
    row = r"| a\<b | -0.5 | 3 |"  # Markdown shows a<b
    for part in ("# A title", "## Gold & reward", "It fell by -0.5.", row, "Small print."):
        assert part in text


def test_only_numbers_get_a_minus_sign():
    assert typeset("-0.5 [-1, +2], best-of-16, n-3, -x") == "−0.5 [−1, +2], best-of-16, n-3, -x"


def judged(**differences):
    methods = {name: {"gold_reward": REWARD} for name in [*differences, "ivg"]}
    paired = {name: {"mean": mean, "ci95": [mean - 0.1, mean + 0.1]} for name, mean in differences.items()}
    return {"reference": "ivg", "methods": methods, "paired": paired}


def test_the_verdict_sorts_the_others_by_their_intervals():
    text = verdict(judged(base=0.4, best_of_n=-0.2, token_implicit=0.05))
    assert text == (
        "IVG has a mean gold reward of 1.000 [-1.484, 3.484] over 3 prompts: above base (+0.400); "
        "below best-of-N (-0.200); not told apart from token guidance (+0.050) "
        "(paired differences, 95% intervals)."
    )
    assert verdict(judged()) == "IVG has a mean gold reward of 1.000 [-1.484, 3.484] over 3 prompts."


def test_a_difference_without_interval_tells_nothing_apart():
    data = judged(base=0.4)
    data["paired"]["base"]["ci95"] = [None, None]
    assert "not told apart from base (+0.400)" in verdict(data)


def test_labels_leave_out_what_is_the_same_throughout():
    short, note = frontiers.short_settings(["", "β=0.5, W=4 K=4 L=5", "β=1, W=2 K=8 L=5", "N=16"])
    assert short == ["", "β=0.5, W=K=4", "β=1, W=2, K=8", "N=16"]
    assert note == "L=5 throughout."
    assert frontiers.short_settings(["β=1"]) == (["β=1"], "")


def test_a_method_looks_the_same_in_every_figure():
    assert figures.styles(["ivg", "base"])["ivg"] == figures.styles(["token_implicit", "ivg", "other"])["ivg"]
    several = figures.styles(["base", "mine", "yours"])
    assert len(set(several.values())) == 3
    assert len(figures.styles(map(str, range(20)))) == 20


def test_results_of_one_kind_keep_apart(tmp_path):
    data = {
        **judged(base=0.4),
        "reward": "logit",
        "win_rates": {"base": {"mean": 1.0, "ci95": [0.6, 1.0]}},
    }
    data["paired"]["base"] |= {"bootstrap95": [0.3, 0.5], "n": 3}
    for name in data["methods"]:
        data["methods"][name] |= {"distinct_1": None, "distinct_2": None}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gold_reward.json").write_text(json.dumps(data))
    sections = collect(tmp_path, num_samples=0)
    assert [section.title for section in sections] == [
        "Gold reward: one/gold_reward", "Gold reward: two/gold_reward",
    ]  # fmt: skip
    markdown("t", sections, tmp_path)
    assert len(list((tmp_path / "figures").iterdir())) == 2
    (tmp_path / "two" / "gold_reward.json").unlink()
    assert [section.title for section in collect(tmp_path, num_samples=0)] == ["Gold reward"]
