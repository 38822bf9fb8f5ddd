"""Run every stage of the recipe with a tiny random model in the base's place, in this process.

    python recipes/smollm2/stand_in.py

Training and decoding settings are the recipe's own, but for lengths, numbers of prompts and steps. What is
made lies in runs/recipes/smollm2.
"""

import os
import shlex
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import real  # first: it says where the quickstart's modules lie

# isort: split
import answer_rewards
from in_one_process import run_command
from run import ONE_PROCESS, ROOT, environment
from stages import Runner

from ivg.errors import exit_on_user_error

sys.path.insert(0, str(ROOT / "recipes"))
from stand_ins import save_model

FOLDER = "runs/recipes/smollm2"
SIZE = real.Size(
    runs=FOLDER,
    configs=f"{FOLDER}/configs",
    base=f"{FOLDER}/base",
    num_prompts=2,
    num_shown=2,
    sampling=" --max_prompts 6 --max_new_tokens 8",
    training=" --max_steps 2 --max_length 400",
    decoding=" sampling.max_new_tokens=6",
)
# As many layers as SmolLM2 has, of which the recipe trains the last ones and keeps the first ones.
MODEL = {"architecture": "llama", "vocabulary": "llama", "chat": True, "shape": {"num_hidden_layers": 30}}


def any_reward(rows: Sequence[object], responses: Sequence[str]) -> list[float]:
    """Score what has neither tone nor sentences: by a number that a text always has, from 0 to 1."""
    return [zlib.crc32(response.encode()) / 2**32 for response in responses]


class InThisProcess(Runner):
    """Runs all commands in this process, which pays for its imports once."""

    def run_command(self, command: str) -> int:
        if command.startswith(ONE_PROCESS):
            commands = shlex.split(command.removeprefix(ONE_PROCESS))
            return next((code for code in map(run_command, commands) if code), 0)
        return run_command(command.removeprefix("python "))


@exit_on_user_error
def main() -> None:
    """Run all stages of `make real` and `make real-full`."""
    os.chdir(ROOT)
    os.environ.update(environment(os.environ, (real.RECIPE, real.QUICKSTART)))
    shutil.rmtree(FOLDER, ignore_errors=True)
    save_model(Path(SIZE.base), MODEL)
    real.write_configs(SIZE)
    sweep = Path(SIZE.configs) / "sweep.yaml"
    sweep.write_text(sweep.read_text(encoding="utf-8").replace("limit: 48", "limit: 2"), encoding="utf-8")
    real.BETAS = {"tone": (0, 1), "brevity": (0, 1)}
    answer_rewards.tone = answer_rewards.brevity = any_reward
    for stages, runs in ((real.real(SIZE), FOLDER), (real.full(SIZE, f"{FOLDER}/full"), f"{FOLDER}/full")):
        InThisProcess(ROOT, ROOT / runs / "stamps", os.environ).run(stages)


if __name__ == "__main__":
    main()
