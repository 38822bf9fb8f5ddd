"""The whole loop on one machine: train a base and its guides, guide the base, report whether it helped.

    python recipes/quickstart/run.py        (or `make quickstart`)

Everything is written to runs/quickstart. Finished stages are skipped; a run that was killed goes on when
started again.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from guides_accuracy import PREFERENCES
from report import METHODS, RUNS
from stages import Runner, Stage, StageFailed

from ivg.errors import exit_on_user_error

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/quickstart"
ONE_PROCESS = f"python {RECIPE}/in_one_process.py"
REWARD = [f"{RECIPE}/{file}" for file in ("review_reward.py", "checker.py", "corpus.py")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a run of the recipe has its files.

    Attributes:
        configs: folder of the YAML files.
        runs: folder that the models and results are written to.
        data: folder of prompts, reviews and tokenizer.
        prefix: opens the names of its stages.
    """

    configs: str = RECIPE
    runs: str = str(RUNS)
    data: str = f"{RUNS}/data"
    prefix: str = ""

    def stage(
        self, name: str, title: str, commands: Iterable[str], inputs: Iterable[str], *outputs: str
    ) -> Stage:
        """Describe a stage; outputs are named within `runs`."""
        return Stage(
            name=self.prefix + name,
            title=title,
            commands=list(commands),
            inputs=list(inputs),
            outputs=[f"{self.runs}/{output}" for output in outputs],
        )

    def config(self, name: str) -> str:
        """Return the path of a YAML file."""
        return f"{self.configs}/{name}.yaml"

    def training(self, name: str, title: str, kind: str, *inputs: str, output: str = "") -> Stage:
        """Describe a stage that trains a model by one YAML named after the stage.

        In one process, and not through `accelerate launch`, which would take seconds to start another.
        """
        config = self.config(name)
        commands = [in_one_process([f"ivg train {kind} --config {config}"])]
        stage = Path(name).name
        return self.stage(stage, title, commands, [config, *inputs], output or stage)

    def weights(self, *models: str) -> list[str]:
        """Name the files that decide what trained models do."""
        files = ("config.json", "model.safetensors")
        return [f"{self.runs}/{model}/{file}" for model in models for file in files]

    def labelled(self, file: str, *folders: str) -> list[str]:
        """Name the labelled samples that a guide is trained and judged on."""
        return [f"{self.runs}/{folder}/{file}.jsonl" for folder in folders or ROLLOUTS]


ROLLOUTS = ("rollouts", "rollouts_validation")


def preparing(places: Places) -> Stage:
    """Describe the stage that makes prompts, reviews and the tokenizer."""
    config = places.config("prepare")
    return Stage(
        name="prepare",
        title="draw prompts, write reviews, train a tokenizer",
        commands=[f"python {RECIPE}/prepare.py --config {config}"],
        inputs=[f"{RECIPE}/corpus.py", f"{RECIPE}/prepare.py", config],
        outputs=[places.data],
    )


def trainings(places: Places) -> list[Stage]:
    """List the stages that train the base and its guides."""
    reviews = [
        f"{places.data}/{file}" for file in ("tokenizer", "reviews.train.jsonl", "reviews.validation.jsonl")
    ]
    sampling = [places.config(name) for name in ROLLOUTS]
    weights, labelled = places.weights, places.labelled
    return [
        places.training("base", "train the base", "sft", *reviews),
        places.training("untuned", "train the untuned guide", "sft", *reviews),
        places.stage(
            "rollouts",
            "sample from the base and score with the gold reward",
            [in_one_process(f"ivg train rollouts --config {config}" for config in sampling)],
            [*sampling, *REWARD, *weights("base"), f"{places.data}/prompts.train.jsonl"],
            *ROLLOUTS,
        ),
        places.training(
            "dpo",
            "tune the guide (DPO)",
            "dpo",
            *weights("untuned"),
            *labelled("preferences"),
            output="tuned",
        ),
        places.training(
            "value",
            "train the value model (FUDGE)",
            "value",
            *weights("untuned"),
            *labelled("completions"),
        ),
    ]


def quickstart() -> list[Stage]:
    """List the stages of the quickstart."""
    places = Places()
    decoding = [places.config(f"decode/{method}") for method in METHODS]
    trained = places.weights("base", "untuned", "tuned", "value")
    sweep = places.config("sweep")
    judging = [f"{RECIPE}/report.py", f"ivg eval report --folder {RUNS} --title Quickstart"]
    return [
        preparing(places),
        *trainings(places),
        places.stage(
            "decode",
            f"decode the test prompts with {len(METHODS)} methods",
            [in_one_process(f"ivg-decode --config {config}" for config in decoding)],
            [*decoding, *trained, f"{places.data}/prompts.test.jsonl"],
            "decoded",
        ),
        places.stage(
            "sweep",
            "decode validation prompts over a grid of beta, W and K",
            [f"ivg eval sweep --config {sweep}"],
            [sweep, *REWARD, *trained, f"{places.data}/prompts.validation.jsonl"],
            "sweep",
        ),
        places.stage(
            "report",
            "judge, compare, draw",
            [in_one_process(judging)],
            [
                *(f"{RECIPE}/{file}.py" for file in ("report", "guides_accuracy")),
                *(*REWARD, f"{RUNS}/decoded", f"{RUNS}/sweep", *trained),
                f"{RUNS}/{PREFERENCES}",
            ],
            *("report.json", "reward_accuracy.json", "report.md", "report.html", "figures"),
        ),
    ]


def in_one_process(commands: Iterable[str]) -> str:
    """Join commands into one that runs them in a single process."""
    return f"{ONE_PROCESS} {shlex.join(commands)}"


def environment(outer: Mapping[str, str], recipes: Sequence[str] = (RECIPE,)) -> dict[str, str]:
    """Return the environment of every stage.

    This interpreter's commands, the recipe's own modules (the reward is one), two threads unless
    OMP_NUM_THREADS says otherwise, no GPU, no hub.

    Args:
        outer: the environment around.
        recipes: folders whose modules the stages import.
    """
    modules = [str(ROOT / recipe) for recipe in recipes]
    return {
        **outer,
        "PYTHONPATH": os.pathsep.join(filter(None, (*modules, outer.get("PYTHONPATH")))),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{outer.get('PATH', '')}",
        "OMP_NUM_THREADS": outer.get("OMP_NUM_THREADS", "2"),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        # TRL still sets a key that transformers has renamed; nothing that a user could mend.
        "PYTHONWARNINGS": "ignore::FutureWarning:transformers.training_args",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_all(stages: Sequence[Stage], stamps: Path, recipes: Sequence[str] = (RECIPE,)) -> int:
    """Run what is not finished; the exit code is that of the first stage that failed.

    Args:
        stages: in their order.
        stamps: folder that remembers what is finished.
        recipes: folders whose modules the stages import.
    """
    try:
        Runner(ROOT, stamps, environment(os.environ, recipes)).run(stages)
    except StageFailed as failure:
        print(f"\n{failure}\nThe same command goes on from here.", file=sys.stderr)
        return failure.exit_code if failure.exit_code > 0 else 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


@exit_on_user_error
def main() -> int:
    """Run what is not finished, and say where the report is."""
    code = run_all(quickstart(), ROOT / RUNS / "stamps")
    if code == 0:
        print(f"\nThe report is {RUNS}/report.html (or report.md); its numbers are in {RUNS}/report.json.")
    return code


if __name__ == "__main__":
    sys.exit(main())
