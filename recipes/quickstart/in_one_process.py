"""Run several commands one after the other in one process, which pays for its imports once.

    python recipes/quickstart/in_one_process.py "ivg train sft --config a.yaml" "ivg-decode --config b.yaml"

A command is `ivg train`, `ivg eval`, `ivg-decode` or a script of the recipe. The first that fails ends the
process with its exit code; each takes up by itself what an earlier attempt left.
"""

import runpy
import shlex
import sys
from collections.abc import Sequence

from ivg.__main__ import run_here
from ivg.errors import exit_on_user_error
from ivg.run.cli import main as decode


def run_command(command: str) -> int:
    """Run one command as its own process would be run, and return its exit code."""
    program, *arguments = shlex.split(command)
    try:
        if program == "ivg-decode":
            return decode(arguments)
        if program == "ivg":
            verb, name, *rest = arguments
            return run_here(verb, name, rest)
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@exit_on_user_error
def main(commands: Sequence[str]) -> int:
    """Run all commands, up to the first that fails."""
    for command in commands:
        print(f"$ {command}", flush=True)
        code = run_command(command)
        if code != 0:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
