import dataclasses

import pytest

from ivg.errors import UserError
from ivg.evaluation.options import option, parse_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
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
