"""How much is said, and where: the same for every verb."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from ivg.__main__ import EVALUATIONS
from ivg.errors import UserError
from ivg.evaluation.options import CommandOptions
from ivg.run import cli, console
from tests.run.conftest import Folders


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The level of ivg's logger is how much is said, for the whole process."""
    logger = logging.getLogger("ivg")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.parametrize(
    ("flags", "quiet", "verbose"),
    [([], False, False), (["--quiet"], True, False), (["--verbose"], False, True)],
)
def test_flags_decide_how_much_is_said(flags: list[str], quiet: bool, verbose: bool) -> None:
    assert console.take_flags(["--a", *flags, "b"]) == ["--a", "b"]
    assert (console.is_quiet(), console.is_verbose()) == (quiet, verbose)
    parser = argparse.ArgumentParser()
    console.add_flags(parser)
    given = parser.parse_args(flags)
    assert (given.quiet, given.verbose, given.json) == (quiet, verbose, False)


def test_less_and_more_at_once_is_refused() -> None:
    with pytest.raises(UserError, match="quiet and verbose exclude each other; give one of them"):
        console.take_flags(["--quiet", "--verbose"])


def test_notes_go_to_stderr_from_the_main_process_unless_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.set_up()
    console.note("one")
    monkeypatch.setenv("RANK", "1")
    console.note("two")
    monkeypatch.delenv("RANK")
    console.set_up(quiet=True)
    console.note("three")
    assert capsys.readouterr() == ("", "one\n")


def test_json_is_json_whatever_stands_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"mean": float("nan"), "text": "ä \ud800", "pair": (1, 2.5)})
    assert json.loads(capsys.readouterr().out) == {"mean": None, "text": "ä \ud800", "pair": [1, 2.5]}


@pytest.mark.parametrize("name", sorted(set(EVALUATIONS) - {"sweep", "speed", "bench", "bench-engines"}))
def test_every_evaluation_takes_the_flags(name: str) -> None:
    assert issubclass(import_module(EVALUATIONS[name].module).Options, CommandOptions)


def run_line(folders: Folders, folder: Path, *more: str) -> list[str]:
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "the movie"}\n{"prompt": "a film"}\n{"nothing": 1}\n')
    line = ["--base", folders.base, "--max_new_tokens", "5", "--input", str(prompts), "--skip_bad_rows"]
    return [*line, *(more or ("--output", str(folder / "out.jsonl")))]


def test_the_summary_of_a_run_as_json_and_as_a_line(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = run_line(folders, tmp_path)
    assert cli.main([*line, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    rows = [json.loads(row) for row in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert summary.pop("seconds") > 0
    num_tokens = sum(row.get("num_tokens", 0) for row in rows)
    assert summary.pop("output") == str(tmp_path / "out.jsonl")
    (fed,) = summary.pop("tokens_fed").items()
    assert fed[0] == "base"
    assert fed[1] >= num_tokens
    assert summary.pop("flops") > 0
    assert summary == {"num_results": 3, "num_bad_records": 1, "num_tokens": num_tokens}
    assert cli.main(line) == 0  # nothing is left to do
    out, err = capsys.readouterr()
    assert out == ""
    # The line sums up the whole run, whoever did its parts.
    assert f"{tmp_path / 'out.jsonl'}: 3 results; {num_tokens} tokens decoded in " in err


def test_quiet_says_nothing(folders: Folders, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*run_line(folders, tmp_path), "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_verbose_says_what_is_loaded(
    folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cli.main([*run_line(folders, tmp_path), "--verbose"]) == 0
    assert f"base ({folders.base}): loaded in torch.float" in caplog.text


@pytest.mark.parametrize("more", [["--output", "-"], ["--output", "out.jsonl", "--stream"]])
def test_json_and_results_cannot_share_standard_output(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([*run_line(folders, tmp_path, *more), "--json"])
    assert "both go to standard output; leave --json out" in capsys.readouterr().err


def test_a_dry_run_as_json_has_the_models_and_the_verdict(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*run_line(folders, tmp_path), "--dry_run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["engine"], report["num_prompts"], report["problems"]) == ("lockstep", 2, [])
    assert [model["name"] for model in report["models"]] == [f"base ({folders.base})"]
    assert report["models"][0]["needs"]["dtype"] == "float64"


def test_no_colour_where_it_is_unwanted(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*run_line(folders, tmp_path), "--dry_run"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.main(line) == 0
    green = re.compile(r"\x1b\[[\d;]*3\dm")
    assert green.search(capsys.readouterr().out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(line) == 0
    assert not green.search(capsys.readouterr().out)
