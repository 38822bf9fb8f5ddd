"""`ivg recipes`: what is listed, and that a copy is the recipe with all that it refers to."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

import pytest

from ivg.__main__ import main
from ivg.commands.recipes import find_recipes, read_steps, recipe_names

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


def ivg(*arguments: object) -> int:
    return main(["recipes", *map(str, arguments)])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit, match="2"):
        ivg(*arguments)
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line.removeprefix("error: ")


def test_a_checkout_has_its_recipes_beside_the_package() -> None:
    assert find_recipes() == RECIPES
    assert {"quickstart", "tulu", "ultra"} <= set(recipe_names(RECIPES))
    assert "accelerate" not in recipe_names(RECIPES)  # launch files: no command, no recipe


def test_steps_come_in_the_order_in_which_they_are_run() -> None:
    steps = read_steps(RECIPES / "summarization")
    assert [step.kind for step in steps] == [
        "train sft", "train rollouts", "train dpo", "train value", "decode", "decode", "decode"
    ]  # fmt: skip
    assert steps[0].path == "recipes/summarization/sft.yaml"
    assert steps[0].command == "ivg train sft --config recipes/summarization/sft.yaml"
    first = read_steps(RECIPES / "quickstart")[0]
    assert (first.kind, first.command) == ("run", "python recipes/quickstart/run.py")


@pytest.mark.parametrize("name", recipe_names(RECIPES))
def test_every_command_names_a_file_that_is_there(name: str) -> None:
    for step in read_steps(RECIPES / name):
        named = [word for word in step.command.split() if word.startswith("recipes/")]
        assert named
        assert all((ROOT / word).exists() for word in named)


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    ivg("list")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sentiment"))
    assert line.split(maxsplit=1)[1] == "train rollouts, train dpo, train value, 3 x decode"
    ivg("show", "tulu")
    shown = capsys.readouterr().out
    assert (
        "  $ ivg train --config_file recipes/accelerate/zero2.yaml dpo --config recipes/tulu/dpo.yaml"
        in shown
    )
    for name in ("tulu/dpo.yaml", "recipes/tulu/dpo.yaml"):
        ivg("show", name)
        assert capsys.readouterr().out == (RECIPES / "tulu" / "dpo.yaml").read_text()


def test_a_copy_brings_what_the_recipe_refers_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ultra decodes with a value model of tulu, and tulu is launched with a file of accelerate."""
    ivg("copy", "ultra", tmp_path)
    assert {path.name for path in (tmp_path / "recipes").iterdir()} == {"ultra", "tulu", "accelerate"}
    for name in ("ultra", "tulu", "accelerate"):
        compared = filecmp.dircmp(RECIPES / name, tmp_path / "recipes" / name, ignore=["__pycache__"])
        assert compared.left_list == compared.right_list == compared.same_files
    assert "$ ivg-decode --config recipes/ultra/decode_ivg.yaml" in capsys.readouterr().out


def test_a_copy_goes_here_by_default_and_leaves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "recipes" / "accelerate" / "zero2.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    (tmp_path / "recipes" / "tulu").mkdir()  # an empty folder is as good as none
    ivg("copy", "tulu")
    assert own.read_text() == "mine"
    assert (tmp_path / "recipes" / "tulu" / "dpo.yaml").is_file()
    changed = tmp_path / "recipes" / "tulu" / "dpo.yaml"
    changed.write_text("changed")
    capsys.readouterr()
    assert refusal(capsys, "copy", "tulu") == (
        "recipes/tulu: is there already; move it away, or name another folder"
    )
    assert changed.read_text() == "changed"


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file"
    assert refusal(capsys, "copy", "qwen3", place) == (
        f"{place}/recipes: Not a directory; give a folder that can be written"
    )
    assert "null" in refusal(capsys, "copy", "qwen3", "a\0b")
    disk_full = OSError(28, os.strerror(28))

    def refuse(*_: object, **__: object) -> None:
        raise disk_full

    monkeypatch.setattr("ivg.commands.recipes._copy_one", refuse)
    assert "No space left on device" in refusal(capsys, "copy", "qwen3", tmp_path / "new")
    assert list((tmp_path / "new" / "recipes").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: list | show | copy"),
        (["shwo"], "invalid choice: 'shwo'"),
        (["show"], "required: NAME"),
        (["show", "nosuch"], "'nosuch' is no recipe; "),
        (["copy", "quikstart"], "'quikstart' is no recipe; did you mean 'quickstart'?"),
        (["copy", "accelerate"], "'accelerate' is no recipe"),
        (["show", "tulu/nosuch.yaml"], "recipe tulu has no file 'nosuch.yaml'"),
        (["show", "tulu/../../pyproject.toml"], "has no file"),
        (["list", "more"], "unrecognized arguments: more"),
    ],
)
def test_bad_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refusal(capsys, *arguments)
