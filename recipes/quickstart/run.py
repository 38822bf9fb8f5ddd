"""The whole loop on one machine: train a base and its guides, guide the base, report whether it helped.

    python recipes/quickstart/run.py        (or `make quickstart`)

Everything is written to runs/quickstart. Finished stages are skipped; a run that was killed goes on when
started again.
"""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from report import METHODS, RUNS
from stages import Runner, Stage, StageFailed

from ivg.errors import exit_on_user_error

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/quickstart"
ONE_PROCESS = f"python {RECIPE}/in_one_process.py"
REWARD = [f"{RECIPE}/{file}" for file in ("review_reward.py", "checker.py", "corpus.py")]


def training(name: str, title: str, script: str, *inputs: str, output: str = "") -> Stage:
    """Describe a stage that trains a model by one YAML named after the stage."""
    config = f"{RECIPE}/{name}.yaml"
    return Stage(
        name=name,
        title=title,
        commands=[f"python train/{script} --config {config}"],
        inputs=[config, *inputs],
        outputs=[f"{RUNS}/{output or name}"],
    )


def weights(*models: str) -> list[str]:
    """Name the files that decide what a trained model does."""
    return [f"{RUNS}/{model}/{file}" for model in models for file in ("config.json", "model.safetensors")]


def quickstart() -> list[Stage]:
    """List the stages of the quickstart."""
    data, rollouts = f"{RUNS}/data", (f"{RUNS}/rollouts", f"{RUNS}/rollouts_validation")
    reviews = [f"{data}/tokenizer", f"{data}/reviews.train.jsonl", f"{data}/reviews.validation.jsonl"]
    sampling = [f"{RECIPE}/{name}.yaml" for name in ("rollouts", "rollouts_validation")]
    decoding = [f"{RECIPE}/decode/{method}.yaml" for method in METHODS]
    trained = weights("base", "untuned", "tuned", "value")
    return [
        Stage(
            name="prepare",
            title="draw prompts, write reviews, train a tokenizer",
            commands=[f"python {RECIPE}/prepare.py --config {RECIPE}/prepare.yaml"],
            inputs=[f"{RECIPE}/{file}" for file in ("corpus.py", "prepare.py", "prepare.yaml")],
            outputs=[data],
        ),
        training("base", "train the base", "sft.py", *reviews),
        training("untuned", "train the untuned guide", "sft.py", *reviews),
        Stage(
            name="rollouts",
            title="sample from the base and score with the gold reward",
            commands=[in_one_process(f"train/rollouts.py --config {config}" for config in sampling)],
            inputs=[*sampling, *REWARD, *weights("base"), f"{data}/prompts.train.jsonl"],
            outputs=rollouts,
        ),
        training(
            "dpo",
            "tune the guide (DPO)",
            "dpo.py",
            *weights("untuned"),
            *labelled("preferences"),
            output="tuned",
        ),
        training(
            "value",
            "train the value model (FUDGE)",
            "value.py",
            *weights("untuned"),
            *labelled("completions"),
        ),
        Stage(
            name="decode",
            title=f"decode the test prompts with {len(METHODS)} methods",
            commands=[in_one_process(f"ivg-decode --config {config}" for config in decoding)],
            inputs=[*decoding, *trained, f"{data}/prompts.test.jsonl"],
            outputs=[f"{RUNS}/decoded"],
        ),
        Stage(
            name="sweep",
            title="decode validation prompts over a grid of beta, W and K",
            commands=[f"python eval/sweep.py --config {RECIPE}/sweep.yaml"],
            inputs=[f"{RECIPE}/sweep.yaml", *REWARD, *trained, f"{data}/prompts.validation.jsonl"],
            outputs=[f"{RUNS}/sweep"],
        ),
        Stage(
            name="report",
            title="judge, compare, draw",
            commands=[
                in_one_process([f"{RECIPE}/report.py", f"eval/report.py --folder {RUNS} --title Quickstart"])
            ],
            inputs=[f"{RECIPE}/report.py", *REWARD, f"{RUNS}/decoded", f"{RUNS}/sweep", *weights("base")],
            outputs=[f"{RUNS}/{file}" for file in ("report.json", "report.md", "report.html", "figures")],
        ),
    ]


def in_one_process(commands: Iterable[str]) -> str:
    """Join commands into one that runs them in a single process."""
    return f"{ONE_PROCESS} {shlex.join(commands)}"


def labelled(file: str) -> list[str]:
    """Name the labelled samples that a guide is trained and judged on."""
    return [f"{RUNS}/{folder}/{file}.jsonl" for folder in ("rollouts", "rollouts_validation")]


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every stage.

    This interpreter's commands, the recipe's own modules (the reward is one), two threads, no GPU, no hub.
    """
    return {
        **outer,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / RECIPE), outer.get("PYTHONPATH")))),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{outer.get('PATH', '')}",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        # TRL still sets a key that transformers has renamed; nothing that a user could mend.
        "PYTHONWARNINGS": "ignore::FutureWarning:transformers.training_args",
        "TOKENIZERS_PARALLELISM": "false",
    }


@exit_on_user_error
def main() -> int:
    """Run what is not finished, and say where the report is."""
    try:
        Runner(ROOT, ROOT / RUNS / "stamps", environment(os.environ)).run(quickstart())
    except StageFailed as failure:
        print(f"\n{failure}\nThe same command goes on from here.", file=sys.stderr)
        return failure.exit_code if failure.exit_code > 0 else 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"\nThe report is {RUNS}/report.html (or report.md); its numbers are in {RUNS}/report.json.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
