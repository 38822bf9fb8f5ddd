"""How a command ends: on a user's mistake, on what a run met, on a file that the system refuses."""

import pytest

from ivg.decoding.engine import EngineError, NumericalError
from ivg.errors import UserError, exit_on_user_error


def ending(capsys, error):
    """Return exit code and standard error of a command that raises."""

    @exit_on_user_error
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("beta is x; give\na number"), 2, "error: beta is x; give a number\n"),
        (
            NumericalError("base returned NaN on prompt \x1b[2J"),
            1,
            "error: base returned NaN on prompt \\x1b[2J\n",
        ),
        (EngineError("vLLM died"), 1, "error: vLLM died\n"),
        (
            OSError(28, "No space left on device", "out.jsonl"),
            1,
            "error: out.jsonl: No space left on device\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["user", "numbers", "engine", "file", "interrupt"],
)
def test_every_end_is_one_line_and_a_code(capsys, error, code, said):
    assert ending(capsys, error) == (code, said)


def test_of_several_processes_one_tells_a_mistake_and_each_its_own_failure(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert ending(capsys, UserError("beta is x")) == (2, "")
    assert ending(capsys, NumericalError("base returned NaN")) == (1, "error: base returned NaN\n")


def test_a_fault_of_ours_keeps_its_traceback():
    @exit_on_user_error
    def main():
        raise OSError("not of a file")

    with pytest.raises(OSError, match="not of a file"):
        main()
