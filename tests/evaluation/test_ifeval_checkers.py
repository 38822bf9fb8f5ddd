"""IFEval's 25 kinds of instructions as its paper has them (arXiv 2311.07911), by the package's checkers.

Responses are our own. Sentences are split by nltk, with a stand-in for its data that knows one abbreviation.
"""

import importlib.util

import pytest

from ivg.errors import UserError
from ivg.evaluation import ifeval

LACKING = [name for name in ("lm_eval", "langdetect", "nltk") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")

TALK = "The weather was fine this morning and so we walked along the river to the old town"
# Instruction, its arguments, a response that follows it and one that does not.
CASES = [
    ("keywords:existence", {"keywords": ["river", "town"]}, "A Town by the river.", "A town by the sea."),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": "at least"},
        "Tea, and more tea.",
        "Tea alone.",
    ),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": "less than"},
        "Tea alone.",
        "Tea, tea.",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Concatenate.", "A Cat sat."),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
        "Quick quiz.",
        "Quick.",
    ),
    ("language:response_language", {"language": "de"}, "Das Wetter war heute Morgen sehr schön.", TALK),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "It rained. We stayed.",
        "Dr. Smith stayed.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        "Dr. Smith stayed.",
        "It rained. We stayed.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        "One two three.",
        "One two.",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        "One two.",
        "One two three.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, rain.",
        "First.\n\nNow, rain.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen.",
        "First.\n\nThen.\n\nLast.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [address]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Write.", "Bye."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S Write.", "Bye.\nP.S. No."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one*, *two*", "*one*, two"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\na\nPart 2\nb",
        "Part 1\na",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A walk>>\nWe went.", "A walk\nWe went."),
    ("combination:two_responses", {}, "One way.******Another.", "One way.******One way."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why rain?"}, "Why rain? Clouds.", "Clouds."),
    ("startend:end_checker", {"end_phrase": "That is all."}, "It rained. That is all.", "That is all. Bye."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "It was VERY wet, REALLY.",
        "It was VERY wet.",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "It was VERY wet.",
        "It was VERY, VERY wet.",
    ),
    ("change_case:english_capital", {}, TALK.upper(), TALK),
    ("change_case:english_lowercase", {}, TALK.lower(), TALK),
    ("punctuation:no_comma", {}, "One and two.", "One, two."),
    ("startend:quotation", {}, '"We went."', '"We went.'),
]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    import nltk

    folder = tmp_path_factory.mktemp("nltk_data")
    english = folder / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (english / name).write_text("")
    (english / "abbrev_types.txt").write_text("dr\n")
    nltk.data.path.insert(0, str(folder))
    yield ifeval.load_checker()
    nltk.data.path.remove(str(folder))


def verdict(check, response, *instructions):
    names, kwargs = zip(*instructions, strict=True)
    # The Hub's file gives every prompt all arguments there are, null where they are another instruction's.
    every = dict.fromkeys(name for _, arguments, *_ in CASES for name in arguments)
    prompt = {"key": 1, "prompt": "p", "instruction_id_list": [*names]}
    return check({**prompt, "kwargs": [{**every, **given} for given in kwargs]}, [response])


@pytest.mark.parametrize(
    ("instruction", "kwargs", "follows", "breaks"),
    CASES,
    ids=[f"{name} {' '.join(str(v) for v in kwargs.values())}" for name, kwargs, *_ in CASES],
)
def test_a_response_that_follows_and_one_that_does_not(check, instruction, kwargs, follows, breaks):
    for response, is_followed in ((follows, True), (breaks, False)):
        found = verdict(check, response, (instruction, kwargs))
        assert list(found["inst_level_strict_acc"]) == [is_followed], response
        assert found["prompt_level_strict_acc"] == is_followed


def test_every_kind_is_tried(check):
    registry = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")
    assert {name for name, *_ in CASES} == set(registry.INSTRUCTION_DICT)
    assert len(registry.INSTRUCTION_DICT) == 25


@pytest.mark.parametrize(
    ("response", "strict", "loose"),
    [
        ("Sure, here you are:\nNo comma here", [False], [True]),  # without its first line
        ("No comma here\nHope it helps, bye", [False], [True]),  # without its last
        ("Sure, well:\nNo comma here\nHope, bye", [False], [True]),  # without both
        ("One, two", [False], [False]),
        ("", [False], [False]),  # an empty response follows nothing
        ("No comma", [True], [True]),
    ],
)
def test_loosely_the_first_and_last_lines_do_not_count(check, response, strict, loose):
    found = verdict(check, response, ("punctuation:no_comma", {}))
    assert list(found["inst_level_strict_acc"]) == strict
    assert list(found["inst_level_loose_acc"]) == loose


def test_a_prompt_is_followed_where_each_of_its_instructions_is(check):
    asked = [("punctuation:no_comma", {}), ("keywords:existence", {"keywords": ["tea"]})]
    found = verdict(check, "A cup, please", *asked)
    assert list(found["inst_level_strict_acc"]) == [False, False]
    found = verdict(check, "A cup of tea please", *asked)
    assert found["prompt_level_strict_acc"]
    found = verdict(check, "tea, please", *asked)
    assert (list(found["inst_level_strict_acc"]), found["prompt_level_strict_acc"]) == ([False, True], False)


def test_the_same_response_has_the_same_verdict_each_time(check):
    """What guesses the language draws numbers, to which `load_checker` gives a seed.

    Without it, these words are Afrikaans three times in five, and English otherwise.
    """
    found = {
        tuple(verdict(check, "me too", ("change_case:english_lowercase", {}))["inst_level_strict_acc"])
        for _ in range(20)
    }
    assert len(found) == 1


def test_arguments_that_no_checker_takes_are_one_line(check):
    row = {"key": 7, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"x": 1}]}
    decoded = ifeval.Decoded("mine", [{"prompt": "p", "response": "r"}], ["0"])
    with pytest.raises(UserError, match=r"prompt 7: IFEval's checkers do not take its kwargs: .*'x'"):
        ifeval.measure_ifeval(decoded, [row], check)
    row["instruction_id_list"] = ["no:such"]
    with pytest.raises(UserError, match="prompt 7: the installed lm-eval knows no instruction 'no:such'"):
        ifeval.measure_ifeval(decoded, [row], check)


def test_without_nltks_data_the_line_says_which(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match=r"python -m nltk\.downloader punkt_tab"):
        ifeval.load_checker()
