import json
import math
import os

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ivg.evaluation.measures.distance import encode_response
from ivg.run import cli
from tests.eval import scripts
from tests.evaluation import tiny
from tests.evaluation.measures import slow

gold_reward = scripts.load("gold_reward")


@pytest.fixture
def files(tmp_path):
    """Two decoded files over the same two prompts, and a base that knows their words."""
    texts = {"base": ["w3 w4", "w5 w5"], "ivg": ["w6 w7 w8", "w9"]}
    for name, responses in texts.items():
        rows = [
            {"id": i, "prompt": f"w{i}", "response": text, "num_tokens": len(text.split()) + 1}
            for i, text in enumerate(responses)
        ]
        lines = "".join(json.dumps({**row, "finish_reason": "eos"}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.model().save_pretrained(tmp_path / "model")
    return tmp_path


def number_of_words(rows, responses):
    """A reward that can be worked out by looking."""
    return [float(len(text.split())) for text in responses]


def is_long(rows, responses):
    return [float(len(text.split()) > 2) for text in responses]


def no_reward_for_one_word(rows, responses):
    return [len(text.split()) if " " in text else float("nan") for text in responses]


def never_called(rows, responses):
    raise AssertionError("responses were scored")


def argv_of(files, *more, reward="number_of_words"):
    named = [f"{name}={files / name}.jsonl" for name in ("base", "ivg")]
    options = ["--function", f"{__name__}.{reward}", "--output", str(files / "out.json")]
    return ["--files", *named, *options, *map(str, more)]


def run(files, *more, reward="number_of_words"):
    gold_reward.main(argv_of(files, *more, reward=reward))
    return json.loads((files / "out.json").read_text(encoding="utf-8"))


def test_rewards_lengths_and_pairs_by_hand(files, capsys):
    report = run(files)
    assert report["methods"]["base"]["gold_reward"]["mean"] == 2
    assert report["methods"]["ivg"]["gold_reward"]["mean"] == 2
    assert report["methods"]["ivg"]["num_tokens"]["mean"] == 3
    assert report["paired"]["base"]["mean"] == 0  # 3 - 2 and 1 - 2
    assert report["paired"]["base"]["n"] == 2
    assert report["win_rates"]["base"]["mean"] == 0.5
    printed = capsys.readouterr().out
    assert "Gold reward by method" in printed
    assert "IVG against the others" in printed
    assert "One reward alone" in printed


def test_further_rewards_stand_beside_it(files):
    report = run(files, "--also", f"long={__name__}.is_long", f"words={__name__}.number_of_words")
    assert report["also"] == ["long", "words"]
    assert report["methods"]["ivg"]["words"]["mean"] == 2
    long = report["methods"]["ivg"]["long"]
    assert (long["mean"], long["n"]) == (0.5, 2)
    assert long["ci95"] == pytest.approx([0.0945, 0.9055], abs=1e-4)  # Wilson's, of 1 in 2


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (["nothing"], "got 'nothing'; expected NAME=DOTTED.NAME"),
        (["a=x.y", "a=x.y"], "'a' is given twice"),
        (["a=ivg.rewards.nothing"], "module ivg.rewards defines no nothing"),
        ([f"gold_reward={__name__}.is_long"], "is the name of another measure"),
    ],
)
def test_wrong_further_rewards_are_refused_in_one_line(files, capsys, also, message):
    with pytest.raises(SystemExit) as stop:
        gold_reward.main(argv_of(files, "--also", *also))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_names_are_shown_as_they_are(files, capsys):
    """`[/b]` is no markup, and an escape moves no cursor."""
    names = ["[/b]", "$x^{$", "\x1b[2J"]
    named = [f"{name}={files / 'base'}.jsonl" for name in names]
    gold_reward.main(["--files", *named, "--function", f"{__name__}.no_reward_for_one_word"])
    printed = capsys.readouterr().out
    for name in ("[/b]", "$x^{$", r"\x1b[2J"):
        assert name in printed
    assert "\x1b[2J" not in printed


def test_the_distance_is_zero_for_the_base_and_not_for_others(files):
    report = run(files, "--base", files / "model")
    assert report["methods"]["base"]["distance_from_base"]["mean"] == 0
    assert abs(report["methods"]["ivg"]["distance_from_base"]["mean"]) > 0.1


@pytest.fixture
def guided(files):
    """The pair's halves beside the base, and a file that token guidance by them made, with its record."""
    for seed, name in enumerate(("model", "tuned", "untuned")):
        tiny.model(seed).save_pretrained(files / name)
        tiny.tokenizer().save_pretrained(files / name)
    models = {"--base": "model", "--tuned": "tuned", "--untuned": "untuned"}
    return files, [part for flag, name in models.items() for part in (flag, files / name)]


def decode(files, models, *more):
    """Decode the two prompts to `ivg.jsonl`."""
    options = [
        "--beta",
        0.5,
        "--temperature",
        0.7,
        "--max_new_tokens",
        6,
        *more,
        "--input",
        files / "base.jsonl",
    ]
    output = files / "ivg.jsonl"
    output.unlink(missing_ok=True)  # one without a manifest would not be written over
    options += ["--output", output, "--overwrite", "--return_token_ids"]
    assert cli.main([*map(str, models), *map(str, options)]) == 0


def expected_kl(files, beta, temperature):
    models = [tiny.model(seed) for seed in (0, 1, 2)]
    rows = [json.loads(line) for line in (files / "ivg.jsonl").read_text().splitlines()]
    encoded = [encode_response(tiny.tokenizer(), row) for row in rows]
    return sum(slow.kl(models, row, beta, temperature) for row in encoded) / len(encoded)


def test_divergence_where_it_can_be_known(guided):
    """The numbers are those of the command, since the file has no record."""
    files, models = guided
    report = run(files, *models, "--kl_of", "ivg", "--beta", 2, "--temperature", 0.5, "--best_of", "base=4")
    found = report["methods"]["ivg"]["kl_to_base"]
    assert found["mean"] == pytest.approx(expected_kl(files, 2, 0.5), abs=1e-3)
    assert found["mean"] > 0.1
    assert abs(found["mean"] - expected_kl(files, 1, 1)) > 0.1
    assert found["n"] == 2
    assert report["methods"]["base"]["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)


@pytest.mark.slow
def test_divergence_takes_its_numbers_from_the_runs_record(guided, capsys):
    files, models = guided
    decode(files, models, "--token_guidance", "implicit")
    report = run(files, *models, "--kl_of", "ivg")
    found = report["methods"]["ivg"]["kl_to_base"]["mean"]
    assert found == pytest.approx(expected_kl(files, 0.5, 0.7), abs=1e-3)
    assert found > 0.01
    argv = argv_of(files, *models, "--kl_of", "ivg", "--beta", "1")
    assert "beta is 1.0, but ivg was made with 0.5" in scripts.refused(capsys, gold_reward.main, argv)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--token_guidance", "implicit", "--top_k", 3], "top_k 3 and top_p 1.0, which rule tokens out"),
        (["--token_guidance", "implicit", "--top_p", 0.9], "top_k 0 and top_p 0.9"),
        ([], "says token_guidance none, chunk_guidance none and 1 pairs; expected implicit"),
    ],
)
def test_runs_whose_divergence_is_not_known_are_refused(guided, capsys, more, message):
    files, models = guided
    decode(files, models, *more)
    argv = argv_of(files, *models, "--kl_of", "ivg", reward="never_called")
    assert message in scripts.refused(capsys, gold_reward.main, argv)


def test_what_the_divergence_needs_is_checked_before_anything_is_scored(guided, capsys):
    files, models = guided
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({word: i for i, word in enumerate(reversed(tiny.WORDS))})),
        eos_token="<eos>",
    )
    tiny.model().save_pretrained(files / "other")
    other.save_pretrained(files / "other")
    kl = ["--kl_of", "ivg", "--beta", 1, "--temperature", 1]
    (files / "empty").mkdir()
    cases = {
        "no record beside it that says its beta; give --beta": [*models, "--kl_of", "ivg"],
        "temperature is 0.0 and beta 1.0": [*models, *kl[:4], "--temperature", 0],
        "tuned (/": [*models, *kl, "--tuned", files / "empty"],
        "untuned (/": [*models, *kl, "--untuned", files / "absent"],
        "differs from the base's": [*models, *kl, "--untuned", files / "other"],
    }
    for message, more in cases.items():
        argv = argv_of(files, *more, reward="never_called")
        assert message in scripts.refused(capsys, gold_reward.main, argv)
    (files / "ivg.jsonl.manifest.json").write_text('{"settings": {"search": 3}}')
    argv = argv_of(files, *models, *kl, reward="never_called")
    assert "is not a run's record" in scripts.refused(capsys, gold_reward.main, argv)


def test_a_missing_reward_is_counted_and_said(files, capsys):
    report = run(files, reward="no_reward_for_one_word")
    assert report["methods"]["ivg"]["gold_reward"]["missing"] == 1
    assert report["methods"]["ivg"]["missing"] == {"the reward model gave no number": 1}
    assert report["paired"]["base"]["n"] == 1
    assert "ivg: 1 of 2 responses without a reward" in capsys.readouterr().out


def test_a_file_whose_name_is_no_utf8_is_read(files):
    """Such names come with half surrogates from the command line, and the system takes them back."""
    named = files / os.fsdecode(b"\xff.jsonl")
    (files / "ivg.jsonl").rename(named)
    gold_reward.main([*argv_of(files), "--files", f"base={files / 'base.jsonl'}", f"ivg={named}"])
    report = json.loads((files / "out.json").read_text(encoding="utf-8"))
    assert report["methods"]["ivg"]["gold_reward"]["mean"] == 2.0  # of 3 words and 1


def test_bad_input_is_one_line_and_exit_code_2(files, capsys):
    base = f"base={files / 'base.jsonl'}"
    reward = ["--function", "ivg.rewards.vader"]
    other = files / "other.jsonl"
    other.write_text('{"id": 5, "prompt": "w1", "response": "w2"}\n', encoding="utf-8")
    cases = {
        "no files": reward,
        "unknown argument '--file'; did you mean 'files'": ["--file", base],
        "expected NAME=FILE.jsonl": [files / "base.jsonl", *reward],
        "two files have the same name": [base, base, *reward],
        "hold different prompts": [base, f"other={other}", *reward],
        "exactly one of a function's dotted name": [base],
        "the folder has no config.json; give a folder": [base, *reward, "--base", files],
        "kl_of names one of the files": [base, *reward, "--kl_of", "base"],
        "best_of: got 'base=x'": [base, *reward, "--best_of", "base=x"],
        "must be among the files": [base, *reward, "--best_of", "other=4"],
        "its folder does not exist": [base, *reward, "--output", files / "absent" / "out.json"],
        "is no regular file": [base, *reward, "--output", files],
        "reference 'x' is not among the files base": [base, *reward, "--reference", "x"],
    }
    for message, argv in cases.items():
        flags = argv if str(argv[0]).startswith("--") else ["--files", *argv]
        assert message in scripts.refused(capsys, gold_reward.main, flags)
