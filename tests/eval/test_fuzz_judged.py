"""Generated inputs to the commands that ask a judge or check answers: whatever is in them, no traceback.

As in `test_fuzz.py`, one place of inputs that are right is changed. No judge listens: its answers come from a
stub, through the door that an endpoint's answers pass.
"""

import contextlib
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivg.errors import UserError
from ivg.evaluation.alpaca import asking
from ivg.evaluation.alpaca.answer_schema import MalformedAnswerError, parse_answer
from ivg.evaluation.measures import statistics
from tests.eval import scripts
from tests.eval.fuzzing import NUMBERS, TEXTS, as_bytes, as_yaml, changed, empty_folder, lines, run
from tests.evaluation import tiny
from tests.fuzz.profile import fuzz

COMMANDS = {name: scripts.load(name) for name in ("alpaca", "boards", "ifeval", "judge", "reward_accuracy")}
TOP = {"token": "m", "bytes": None, "logprob": -0.1}
ANSWER = {
    "model": "known",
    "choices": [
        {
            "index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "m"},
            "logprobs": {"content": [{**TOP, "top_logprobs": [TOP, {**TOP, "token": "M", "logprob": -2.4}]}]},
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    """The bootstrap takes most of the time of an example, and takes any numbers."""
    with mock.patch.object(statistics, "NUM_RESAMPLES", 9):
        yield


def answering(body):
    """Return what stands for `Judge`: it answers every question alike, for nothing."""

    class Stub:
        def __init__(self, client, cache, *, patience):
            pass

        def stop(self):
            pass

        def answer(self, kind, request, *, repeat=0):
            try:
                return parse_answer(kind, request, body.decode("utf-8", "surrogatepass"))
            except (MalformedAnswerError, UnicodeDecodeError) as error:
                raise UserError(f"judge kept failing ({error})") from error

    return mock.patch.object(asking, "Judge", Stub)


JUDGE_OPTIONS = {
    "--annotator": TEXTS,
    "--judge_model": TEXTS,
    "--api_key_env": TEXTS,
    "--endpoint": TEXTS,
    "--patience": NUMBERS,
    "--price": NUMBERS,
    "--num_workers": st.sampled_from([-1, 0, 2**70, "x"]),
}


PLACES = st.sampled_from(["", "/dev/null", "/proc/x", "\x00", "x" * 300])  # none can be written


def flags_of(data, choices):
    """Draw no option, or one of those given: several at once are refused for the first."""
    if data.draw(st.booleans()):
        return []
    flag = data.draw(st.sampled_from(sorted(choices)))
    return [f"{flag}={data.draw(choices[flag])}"]


ANNOTATIONS = [
    {
        "instruction": name, "output_1": f"reference {name}", "output_2": f"mine {name}",
        "generator_1": "reference", "generator_2": "mine", "annotator": "somebody", "preference": preference,
    }
    for name, preference in (("a", 2.0), ("b", 1.25))
]  # fmt: skip


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_judge(data):
    good = {"annotations.json": ANNOTATIONS, "answer": ANSWER, "options.yaml": {"num_workers": 1}}
    name = data.draw(st.sampled_from(sorted(good)))
    document = data.draw(changed(good[name]))
    numbers = st.sampled_from([-1, 0, 1, 2, 2**70, "x"])
    own = {"--num_instructions": numbers, "--repeats": numbers, "--seed": numbers}
    flags = flags_of(data, {**JUDGE_OPTIONS, **own})
    files = {**good, name: document}
    with empty_folder() as folder, contextlib.chdir(folder):
        Path("recorded").mkdir()
        Path("recorded/annotations.json").write_bytes(as_bytes(files["annotations.json"]))
        Path("options.yaml").write_bytes(as_yaml(files["options.yaml"]))
        argv = ["--config", "options.yaml", "--recordings", "recorded", "--output", "out", "--yes"]
        argv += ["--endpoint", "http://127.0.0.1:9/v1"]
        with answering(as_bytes(files["answer"])), mock.patch.dict(os.environ, OPENAI_API_KEY="something"):
            run(COMMANDS["judge"].main, [*argv, *flags])
        assert set(os.listdir(folder)) <= {"recorded", "options.yaml", "out"}


def outputs_of(generator):
    return [{"instruction": n, "output": f"{generator} {n}", "generator": generator} for n in ("a", "b")]


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_direct_comparison(data):
    good = {"base.json": outputs_of("base"), "mine.json": outputs_of("mine"), "answer": ANSWER}
    name = data.draw(st.sampled_from(sorted(good)))
    files = {**good, "reference.json": outputs_of("reference"), name: data.draw(changed(good[name]))}
    flags = flags_of(data, {**JUDGE_OPTIONS, "--judge_quality": TEXTS})
    with empty_folder() as folder, contextlib.chdir(folder):
        for file in ("base.json", "mine.json", "reference.json"):
            Path(file).write_bytes(as_bytes(files[file]))
        argv = ["--outputs", "base.json", "mine.json", "--reference", "reference.json", "--output", "out"]
        argv += ["--direct", "--yes", "--num_workers", "1", "--endpoint", "http://127.0.0.1:9/v1"]
        with answering(as_bytes(files["answer"])), mock.patch.dict(os.environ, OPENAI_API_KEY="something"):
            run(COMMANDS["alpaca"].main, [*argv, *flags])
        assert set(os.listdir(folder)) <= {"base.json", "mine.json", "reference.json", "out"}


ARENA = [{"uid": f"u{i}", "prompt": f"p{i}", "response": "**r**", "num_tokens": 2} for i in range(2)]
QUESTIONS = [{"question_id": 81 + i, "category": "c", "turns": ["Write.", "Shorten it."]} for i in range(2)]
FIRST = [
    {"question_id": 81 + i, "messages": [{"role": "user", "content": "Write."}], "response": "r"}
    for i in range(2)
]
SECOND = [
    {
        **row,
        "messages": [
            *row["messages"],
            {"role": "assistant", "content": "r"},
            {"role": "user", "content": "Shorten it."},
        ],
    }
    for row in FIRST
]
TABLE = [{"instruction_index": i, "instruction": f"i{i}"} for i in range(2)]
BOARDS = {
    "arena.jsonl": ARENA, "questions.jsonl": QUESTIONS, "first.jsonl": FIRST, "second.jsonl": SECOND,
    "table.csv": TABLE, "answers.jsonl": [{**row, "response": "r"} for row in TABLE],
}  # fmt: skip


def as_csv(rows):
    """Write cells as they come; what is no table is written as JSON."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return as_bytes(rows)
    names = [name for row in rows for name in row]
    text = "\n".join(",".join(map(str, line)) for line in [names[:2], *(row.values() for row in rows)])
    return text.encode("utf-8", "surrogatepass")


@fuzz
@given(data=st.data())
def test_boards(data):
    name = data.draw(st.sampled_from(sorted(BOARDS)))
    document = data.draw(changed(BOARDS[name]))
    flags = flags_of(data, {"--name": TEXTS, "--output": PLACES})
    arena = ["--board", "arena-hard", "--first", "arena.jsonl", "--own_token_counts"]
    bench = ["--board", "mt-bench", "--questions", "questions.jsonl", "--first", "first.jsonl"]
    bench += ["--second", "second.jsonl"][: data.draw(st.sampled_from([0, 2]))]
    judged = ["--board", "judgearena", "--questions", "table.csv", "--first", "answers.jsonl"]
    with empty_folder() as folder, contextlib.chdir(folder):
        for file, rows in {**BOARDS, name: document}.items():
            Path(file).write_bytes(lines(rows) if isinstance(rows, list) else as_bytes(rows))
        table = document if name == "table.csv" else TABLE
        Path("table.csv").write_bytes(as_csv(table))
        argv = {"arena.jsonl": arena, "table.csv": judged, "answers.jsonl": judged}.get(name, bench)
        run(COMMANDS["boards"].main, [*argv, "--name", "mine", "--output", "out", *flags])


PROMPTS = [
    {
        "key": i,
        "prompt": f"w{i}",
        "instruction_id_list": ["punctuation:no_comma", "keywords:frequency"],
        "kwargs": [{}, {"keyword": "w3", "frequency": 1, "relation": "at least"}],
    }
    for i in range(2)
]
IFEVAL_ROWS = [{"prompt": f"w{i}", "response": "w3 w4"} for i in range(2)]


def check_keywords(prompt, responses):
    """Stand in for the package's checkers, as careless with what they are given."""
    found = []
    for name, kwargs in zip(prompt["instruction_id_list"], prompt["kwargs"], strict=True):
        given = {key: value for key, value in kwargs.items() if value}
        if name == "punctuation:no_comma":
            found.append("," not in responses[0])
        else:
            known = {"keywords:frequency": lambda keyword, frequency, relation: (keyword, frequency)}
            keyword, frequency = known[name](**given)
            found.append(responses[0].count(keyword) >= frequency)
    keys = ("prompt_level_strict_acc", "prompt_level_loose_acc")
    return {**dict.fromkeys(keys, all(found)), "inst_level_strict_acc": found, "inst_level_loose_acc": found}


@fuzz
@given(data=st.data())
def test_ifeval(data):
    good = {"prompts.jsonl": PROMPTS, "mine.jsonl": IFEVAL_ROWS}
    name = data.draw(st.sampled_from(sorted(good)))
    files = {**good, name: data.draw(changed(good[name]))}
    flags = flags_of(data, {"--output": PLACES, "--files": TEXTS})
    with empty_folder() as folder, contextlib.chdir(folder):
        for file, rows in files.items():
            Path(file).write_bytes(lines(rows) if isinstance(rows, list) else as_bytes(rows))
        argv = ["--prompts", "prompts.jsonl", "--files", "mine=mine.jsonl", "--output", "ifeval.json"]
        with mock.patch.object(COMMANDS["ifeval"], "load_checker", return_value=check_keywords):
            run(COMMANDS["ifeval"].main, [*argv, *flags])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, seed in {"tuned": 1, "untuned": 2}.items():
        tiny.model(seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


PREFERENCES = [{"prompt": f"w{i}", "chosen": "w3 w4", "rejected": f"w{i}"} for i in range(2)]
BEST_OF = [{"prompt": f"w{i}", "chosen": ["w3 w4"], "rejected": ["w5", "w6"]} for i in range(2)]
CHATS = [
    {
        "chosen": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w3"}],
        "rejected": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w4"}],
    }
]
REWARDED = [{"prompt": "w1", "response": f"w{i}", "reward": i / 2} for i in range(3)]


def count_letters(rows, responses):
    return [float(len(text)) for text in responses]


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_reward_accuracy(models, data):
    rows = data.draw(changed(data.draw(st.sampled_from([PREFERENCES, BEST_OF, CHATS, REWARDED]))))
    numbers = st.sampled_from([-1, 0, 1, 2**70, "x"])
    choices = {
        "--num_prompts": numbers,
        "--batch_size": numbers,
        "--value": st.sampled_from([str(models / "tuned"), "/dev/zero", "\x00", str(models)]),
        "--pair_template": TEXTS,
        "--output": PLACES,
    }
    flags = flags_of(data, choices)
    is_array = data.draw(st.booleans())
    with empty_folder() as folder:
        path = folder / ("data.json" if is_array else "data.jsonl")
        path.write_bytes(as_bytes(rows) if is_array or not isinstance(rows, list) else lines(rows))
        argv = ["--data", path, "--output", folder / "out", "--function", f"{__name__}.count_letters"]
        pair = ["--tuned", models / "tuned", "--untuned", models / "untuned"]
        run(COMMANDS["reward_accuracy"].main, [*argv, *pair, *flags])
