"""What a stage runs, for tests of the stages' lists."""

import shlex

from run import ONE_PROCESS
from stages import Stage


def commands_of(stage: Stage) -> list[str]:
    """List a stage's commands, those that share a process one by one."""
    found = []
    for command in stage.commands:
        found += (
            shlex.split(command.removeprefix(ONE_PROCESS)) if command.startswith(ONE_PROCESS) else [command]
        )
    return found
