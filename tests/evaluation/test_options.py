import dataclasses

import pytest

from ivg.errors import UserError
from ivg.evaluation.options import CommandOptions, option, parse_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    files: list[str] = dataclasses.field(default_factory=list, metadata={"help": "files"})
    num: int = option(3, "a number")
    limit: float | None = option(None, "a limit")
    sure: bool = option(False, "agree")


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("files: [a, b]\nnum: 4\nlimit: null\nsure: true\n")
    assert parse_options(Options, ["--config", str(path), "--num", "7"], "d") == Options(
        files=["a", "b"], num=7, sure=True
    )
    assert parse_options(Options, [], "d") == Options()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--fils", "x"], "unknown argument '--fils'; did you mean 'files'"),
        (["--num", "x"], "argument --num: invalid int value: 'x'"),
        (["--config", "absent.yaml"], "absent.yaml: No such file"),
    ],
)
def test_bad_flags_are_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        parse_options(Options, argv, "d")


def test_unknown_keys_name_the_nearest(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("nums: 4\n")
    with pytest.raises(UserError, match="unknown key 'nums'; did you mean 'num'"):
        parse_options(Options, ["--config", str(path)], "d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num: four\n", "num is 'four'; give an integer"),
        ("num: true\n", "found true where a number belongs"),
        ("limit: [1]\n", r"limit is \[1\]; give a number or null"),
        ("files: [1]\n", "files"),
        ("- num\n", "expected a mapping of keys"),
    ],
)
def test_a_wrong_type_in_the_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        parse_options(Options, ["--config", str(path)], "d")


def test_one_value_stands_for_a_list_of_it_and_dashes_for_underscores(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Dashed(Options):
        base_template: str | None = option(None, "100% of it")

    path = tmp_path / "options.yaml"
    path.write_text("files: a\nlimit: 2\n")
    parsed = parse_options(Dashed, ["--config", str(path), "--base-template", "x", "--no-sure"], "d")
    assert parsed == Dashed(files=["a"], limit=2.0, base_template="x")
    with pytest.raises(SystemExit):
        parse_options(Dashed, ["--help"], "d")
