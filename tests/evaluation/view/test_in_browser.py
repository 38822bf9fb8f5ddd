"""The page in a browser, wide and narrow, light and dark: what it shows, keys, touch; that no text runs."""

import itertools
import json
import time

import pytest

from ivg.evaluation.view.page import html
from ivg.evaluation.view.search_tree import response_data
from tests.browser import NO_BROWSER, PROGRAM, Browser
from tests.evaluation.view.traces import search_trace

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NO_BROWSER)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BOTH = pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def show(browser, tmp_path):
    """Open a page of trace rows; at the end nothing may have been logged, or asked for beside the page."""
    opened, numbers = [], itertools.count()

    def open_page(*rows, **how):
        path = write_page(tmp_path / f"{next(numbers)}.html", *rows)
        page = browser.open(path, **{**WIDE, **how})
        opened.append((path, page))
        return page

    yield open_page
    for path, page in opened:
        assert page.complaints() == []
        assert [address.partition("#")[0] for address in page.requests()] == [path.as_uri()]
        page.close()


def write_page(path, *rows):
    data = [response_data(row, f"line {number}") for number, row in enumerate(rows, start=1)]
    path.write_text(html("t.trace.jsonl", data), encoding="utf-8")
    return path


def candidate(row, text, value, kept=None, parent=None, *, finished=False, **more):
    place = {"row": row, "parent": parent, "text": text, "value": value, "kept": kept, "finished": finished}
    return {**place, **more}


def row_of(*chunks, **more):
    row = {"id": "p", "sample": 0, "prompt": "Say it.", "tokens": [], "token_logratios": []}
    return {**row, "chunks": [{"candidates": list(candidates)} for candidates in chunks], **more}


# W = 2, K = 2. "a" ends in the first chunk and is kept; at the second it is dropped, by a tie.
SEARCH = row_of(
    [
        candidate(0, "a", 2.0, 0, finished=True),
        candidate(1, "b", 0.5),
        candidate(2, "c\nd", 1.25, 1),
        candidate(3, "e", -1.0),
    ],
    [
        candidate(0, "", 2.0, 1, 0, finished=True),
        candidate(2, " f", 3.0, 0, 1, finished=True),
        candidate(3, " g", 2.0, None, 1),
    ],
)


def text_of(page, selector):
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def texts_of(page, selector):
    return page.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def is_seen(page, selector):
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).checkVisibility()")


@BOTH
def test_it_says_who_survived_and_why(show, size):
    page = show(SEARCH, address="#1/1", **size)
    assert text_of(page, "#prompt") == "Say it."
    assert text_of(page, "#boundary") == "4 candidates, ranked by value; the best 2 go on, 2 dropped."
    assert texts_of(page, "#candidates > li") == [
        "rank 1+2.000aends here · kept",
        "rank 2+1.250c ↵ dkept",
        "lowest value kept +1.250",
        "rank 3+0.500b0.750 too low",
        "rank 4−1.000e2.250 too low",
    ]
    page.press("ArrowRight")
    assert text_of(page, "#boundary") == (
        "3 candidates, ranked by value; the search ends here, and the best is the answer."
    )
    assert texts_of(page, ".candidate .why") == [
        "from beam 2 · ends here · kept",
        "from beam 1 · ended before · kept",
        "from beam 2 · a tie: lower rows go first",
    ]
    assert (text_of(page, "#text-heading"), text_of(page, "#text")) == ("The answer", "c\nd f")


@BOTH
def test_a_candidate_shows_its_way_through_the_tree(show, size):
    page = show(SEARCH, **size)
    assert page.evaluate("document.querySelectorAll('#tree > g:not(#path) .node').length") == 7
    assert page.evaluate("document.querySelectorAll('#tree > g:not(#path) .edge').length") == 3
    page.click("#candidates > li:last-child button")
    assert text_of(page, "#text-heading") == "Dropped after chunk 2, rank 3"
    assert text_of(page, "#text") == "c\nd g"
    assert texts_of(page, "[aria-pressed=true] .words") == [" g"]
    assert texts_of(page, "#path title") == ["+1.250  c ↵ d", "+2.000  g"]
    page.click("#tree [data-chunk='0'] .node:first-of-type")  # the lowest
    assert text_of(page, "#place") == "chunk 1 of 2"
    assert text_of(page, "#text") == "e"


def test_the_height_of_a_dot_is_its_value_or_its_rank(show):
    page = show(SEARCH)
    heights = (
        "[...document.querySelectorAll('#tree > [data-chunk=\"1\"] .node')].map(e =>"
        " Number(e.getAttribute('cy') || Number(e.getAttribute('y')) + Number(e.getAttribute('height')) / 2))"
    )
    top, height = 14, 130  # values from -1 to 3
    assert page.evaluate(heights) == pytest.approx([top + height / 4, top + height / 4, top])
    page.click("#heights label:last-child")
    assert page.evaluate(heights) == pytest.approx([top + height * part / 8 for part in (5, 3, 1)])
    assert texts_of(page, "#axis span") == ["1", "4"]


@BOTH
def test_keys_step_and_play(show, size):
    page = show(search_trace("p", max_tokens=20), address="#1/2", **size)
    places = [text_of(page, "#place")]
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft", "End", "Home"):
        page.press(key)
        places.append(text_of(page, "#place"))
    assert places == [f"chunk {step} of 4" for step in (2, 3, 2, 1, 1, 4, 1)]
    assert page.evaluate("location.hash") == "#1/1"
    page.press(" ")
    assert text_of(page, "#play-label") == "Pause"
    deadline = time.monotonic() + 30
    while text_of(page, "#place") == "chunk 1 of 4" and time.monotonic() < deadline:
        time.sleep(0.02)
    page.press(" ")
    place = text_of(page, "#place")
    # A step takes 1.1 seconds; a slow machine may have missed one.
    assert (text_of(page, "#play-label"), place != "chunk 1 of 4") == ("Play", True)
    time.sleep(1.4)
    assert text_of(page, "#place") == place
    page.press("Home")
    page.evaluate("document.getElementById('step').focus()")
    page.press(" ")  # on a button it presses the button, once
    assert (text_of(page, "#play-label"), text_of(page, "#place")) == ("Play", "chunk 2 of 4")


@BOTH
def test_buttons_and_slider_step(show, size):
    page = show(search_trace("p", max_tokens=20), **size)
    places = []
    for name in ("first", "back", "step", "last", "step", "back"):
        page.evaluate(f"document.getElementById('{name}').click()")
        places.append(text_of(page, "#place"))
    assert places == [f"chunk {step} of 4" for step in (1, 1, 2, 4, 4, 3)]
    page.evaluate("document.getElementById('slider').focus()")
    page.press("ArrowLeft")
    assert text_of(page, "#place") == "chunk 2 of 4"


def test_a_finger_steps_and_scrolls(show):
    page = show(search_trace("p", max_tokens=20), address="#1/2", **NARROW)
    places = []
    for selector, by in (("#prompt", -120), ("#boundary", 120), ("#boundary", -20), ("#tree-scroll", -120)):
        page.swipe(selector, by)
        places.append(text_of(page, "#place"))
    assert places == [f"chunk {step} of 4" for step in (3, 2, 2, 2)]


@BOTH
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_the_page(show, size, dark):
    row = search_trace("x" * 200, num_beams=8, num_successors=8, max_tokens=100, prompt="y" * 900)
    row["chunks"][-1]["candidates"][0]["text"] = "z" * 900
    page = show(row, search_trace("q"), dark=dark, **size)
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert (
        page.evaluate("document.getElementById('tree-scroll').scrollLeft") > 0
    )  # the last chunk is in sight


@BOTH
def test_colours_say_what_guidance_added(show, size):
    tokens = {"tokens": ["x", " y", " z"], "token_logratios": [2.0, -1.0, 0.0]}
    page = show(row_of([candidate(0, "x y z", 1.0, 0, **tokens), candidate(1, "w", 0.0)], **tokens), **size)
    spans = "[...document.querySelectorAll('#text .token')]"
    assert page.evaluate(f"{spans}.map(e => getComputedStyle(e).backgroundColor)") == [
        "rgba(0, 114, 178, 0.6)", "rgba(213, 94, 0, 0.3)", "rgba(0, 114, 178, 0)",
    ]  # fmt: skip
    assert page.evaluate(f"{spans}.map(e => e.title)") == ["+2.000", "−1.000", "+0.000"]
    underlined = page.evaluate(f"{spans}.map(e => getComputedStyle(e).textDecorationLine)")
    assert underlined == ["none", "underline", "none"]
    assert (text_of(page, "#lowest"), text_of(page, "#highest")) == ("−2.00", "+2.00")
    assert not is_seen(page, "#text .number")
    page.click("#numbers")
    assert is_seen(page, "#text .number")
    assert texts_of(page, "#text .number") == ["+2.00", "−1.00", "+0.00"]


def test_a_trace_of_an_older_version_colours_its_answer(show):
    """It has no prompt, and log-ratios for the answer's tokens alone."""
    row = {**SEARCH, "tokens": ["c", "\n", "d", " f"], "token_logratios": [0.0, 1.0, -1.0, 0.5]}
    del row["prompt"]
    page = show(row)
    assert (text_of(page, "#prompt-heading"), is_seen(page, "#prompt")) == ("Response", False)
    assert page.evaluate("document.querySelectorAll('#text .token').length") == 4
    assert is_seen(page, "#legend")
    page.press("Home")
    assert text_of(page, "#text") == "a"
    assert (is_seen(page, "#legend"), is_seen(page, "#no-colours")) == (False, True)


def test_searches_of_every_shape_are_shown(show):
    best_of_n = search_trace("n", num_beams=1, num_successors=64, chunk_length=60)
    one_row = search_trace("o", num_beams=1, num_successors=1, chunk_length=20)
    unguided = search_trace("u", guides_tokens=False)
    empty = row_of(tokens=["only", " this"], token_logratios=[0.5, 1.0])
    page = show(best_of_n, one_row, unguided, empty, {"error": "row 5: too long"})
    chunks = ["#play", "#tree", "#candidates", "#legend", "#text", "#refused"]
    seen = {}
    for number in range(1, 6):
        page.evaluate(f"location.hash = '#{number}'")
        page.evaluate("new Promise(done => setTimeout(done, 50))")
        seen[number] = [selector for selector in chunks if is_seen(page, selector)]
    assert seen == {
        1: ["#play", "#tree", "#candidates", "#legend", "#text"],
        2: ["#play", "#legend", "#text"],
        3: ["#play", "#tree", "#candidates", "#text"],
        4: ["#legend", "#text"],
        5: ["#refused"],
    }
    assert text_of(page, "#refused") == "row 5: too long"
    page.evaluate("location.hash = '#1/99999999'")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    assert text_of(page, "#candidates summary") == "51 more dropped"  # of 63, 12 are in sight


@BOTH
def test_the_list_finds_and_opens_responses(show, size):
    rows = [search_trace(name, max_tokens=10, prompt=f"About {name}") for name in ("cats", "dogs", "owls")]
    page = show(*rows, address="#2", **size)
    assert text_of(page, "#responses-summary") == "Response 2 of 3"
    assert is_seen(page, "#find") == (size is WIDE)
    if size is NARROW:
        page.click("#responses-summary")
    page.evaluate("document.getElementById('find').focus()")
    page.evaluate("document.execCommand('insertText', false, 'OWL')")
    shown = "[...document.querySelectorAll('#response-list li')].filter(e => e.checkVisibility())"
    assert page.evaluate(f"{shown}.map(e => e.querySelector('.title').textContent)") == ["3. About owls"]
    page.press("Tab")
    page.press("Enter")
    assert text_of(page, "#prompt") == "About owls"
    assert texts_of(page, "[aria-current] .title") == ["3. About owls"]
    assert is_seen(page, "#find") == (size is WIDE)  # the fold closes over the narrow page


@pytest.mark.parametrize("address", ["#x", "#0/1", "#3/1", "#1/0", "#-1", "#1/9999999999999", "#%00"])
def test_an_address_that_leads_nowhere_opens_the_first(show, address):
    page = show(SEARCH, SEARCH, address=address)
    assert text_of(page, "#responses-summary") == "Response 1 of 2"
    assert text_of(page, "#place") == ("chunk 1 of 2" if address == "#1/0" else "chunk 2 of 2")


HOSTILE = (
    '</script><img src=x onerror="window.ran=1"><script>window.ran=1</script><!--<script> {{ 7 * 7 }} ${ran} '
    "\u2028\u2029 \x1b[2J \ud800 \u202e \0 &lt; end"
)
WRITTEN_OUT = HOSTILE.replace("\x1b", "\\x1b").replace("\ud800", "\\ud800").replace("\u202e", "\\u202e")
WRITTEN_OUT = WRITTEN_OUT.replace("\0", "\\x00")


@BOTH
def test_every_text_is_shown_and_none_runs(show, size):
    tokens = {"tokens": [HOSTILE], "token_logratios": [1.0]}
    found = [candidate(0, HOSTILE, 1.0, 0, **tokens), candidate(1, HOSTILE, 0.0)]
    page = show(row_of(found, id=HOSTILE, prompt=HOSTILE, **tokens), {"error": HOSTILE}, **size)
    assert text_of(page, "#prompt") == WRITTEN_OUT
    assert WRITTEN_OUT in text_of(page, "#facts")
    assert text_of(page, "#text").removesuffix("+1.00") == WRITTEN_OUT
    assert texts_of(page, ".words") == [f"{WRITTEN_OUT}+1.00", WRITTEN_OUT]
    page.evaluate("location.hash = '#2'")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    assert text_of(page, "#refused") == WRITTEN_OUT
    assert page.evaluate("[typeof window.ran, document.images.length, document.scripts.length]") == [
        "undefined", 0, 3,
    ]  # fmt: skip


def test_what_would_run_is_stopped_by_the_policy(browser, tmp_path):
    """Should a text ever become an element, it would still do nothing."""
    page = browser.open(write_page(tmp_path / "page.html", SEARCH), **WIDE)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert page.evaluate("typeof window.ran") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in page.complaints())
    page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_background(show, dark):
    """WCAG asks for 4.5 of text, and 3 of lines and dots that mean something."""
    page = show(SEARCH, dark=dark)
    names = ("page", "panel", "kept", "ink", "soft", "accent", "on-accent", "cut", "edge")
    style = "getComputedStyle(document.documentElement)"
    colour = {name: page.evaluate(f"{style}.getPropertyValue('--{name}').trim()") for name in names}
    for text, backgrounds in {
        "ink": ("page", "panel", "kept"), "soft": ("page", "panel", "kept"), "accent": ("page",),
        "on-accent": ("accent",), "cut": ("page",),
    }.items():  # fmt: skip
        for background in backgrounds:
            assert contrast(colour[text], colour[background]) >= 4.5, (text, background)
    assert contrast(colour["edge"], colour["page"]) >= 3
    assert contrast(colour["accent"], colour["page"]) >= 3
    for rgb in ((0, 114, 178), (213, 94, 0)):  # the strongest colours of tokens, six tenths over the page
        mixed = [0.6 * c + 0.4 * p for c, p in zip(rgb, channels(colour["page"]), strict=True)]
        assert contrast(colour["ink"], mixed) >= 4.5


def channels(colour):
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def contrast(one, other):
    """The contrast ratio as WCAG 2 defines it."""

    def luminance(colour):
        shares = [c / 255 for c in (channels(colour) if isinstance(colour, str) else colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@BOTH
def test_whoever_cannot_see_it_can_use_it(show, browser, size):
    page = show(search_trace("p", max_tokens=20), search_trace("q", max_tokens=20), address="#1/2", **size)
    nodes = browser.send("Accessibility.getFullAXTree", page._session)["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and any(p["name"] == "focusable" for p in node.get("properties", []))
    ]
    assert all(name for role, name in named if role not in ("RootWebArea", "main"))
    assert {("button", "First chunk"), ("button", "Play"), ("slider", "Chunk"), ("radio", "rank")} <= {*named}
    headings = [
        (node["name"]["value"], p["value"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] == "heading"
        for p in node["properties"]
        if p["name"] == "level"
    ]
    assert [level for _, level in headings] == [1, *[2] * (len(headings) - 1)]
    page.press("Tab")
    focused = "document.activeElement.matches(':focus-visible') && document.activeElement.textContent"
    assert page.evaluate(focused) == "Skip the list of responses"
    page.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_two_hundred_responses_open_at_once(show):
    row = search_trace("p")
    page = show(*({**row, "id": f"p{i}"} for i in range(200)), address="#200/3")
    assert page.evaluate("document.querySelectorAll('#response-list li').length") == 200
    assert text_of(page, "#place").startswith("chunk 3 of ")
    opened = page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive")
    assert opened < 5000  # milliseconds; 300 where this was written
