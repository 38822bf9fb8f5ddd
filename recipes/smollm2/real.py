"""The whole loop on a pretrained model: fetch SmolLM2-135M-Instruct, train guides over it, decode, report.

    python recipes/smollm2/real.py            (or `make real`)
    python recipes/smollm2/real.py --full     (or `make real-full`): 200 prompts, every method, both betas
    python recipes/smollm2/real.py --seed 1   other guides, by the same settings: 200 prompts, every method
    python recipes/smollm2/real.py --small    a trial of a few minutes, in a folder of its own

Finished stages are skipped; a run that was killed goes on when started again.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

QUICKSTART = "recipes/quickstart"
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / QUICKSTART))

from run import ROOT, Places, in_one_process, run_all  # noqa: E402
from stages import Stage  # noqa: E402

from ivg.errors import exit_on_user_error  # noqa: E402

RECIPE = "recipes/smollm2"
RUNS = "runs/smollm2"
REWARDS = f"{RECIPE}/answer_rewards.py"
PAIRS = ("tone", "brevity")

# What `make real` decodes with, and what `make real-full` does.
FIRST_METHODS = ("base", "token_implicit", "ivg")
METHODS = (
    *("base", "best_of_n", "best_of_n_equal_compute", "tuned", "token_implicit"),
    *("token_implicit_best_of_n", "chunk_explicit", "ivg", "ivg_both_pairs"),
)
# How far apart the seeds of two trainings are: the recipe's own files use 0 and 1.
SEED_STEP = 100
# Weights of the two pairs, each with each: the trade-off.
BETAS = {"tone": (0, 0.5, 1), "brevity": (0, 0.5, 1)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a run is, and where.

    Attributes:
        runs: folder of its models and results.
        configs: folder of its YAML files.
        base: folder of the base.
        num_prompts: test prompts that are answered.
        num_shown: of which so many are shown side by side.
        seed: of the training; 0 is the recipe's own.
        sampling: flags of the rollouts, for a smaller run than the YAML's.
        training: likewise of every training.
        decoding: likewise of every decoding.
    """

    runs: str = RUNS
    configs: str = RECIPE
    base: str = f"{RUNS}/base"
    num_prompts: int
    num_shown: int
    seed: int = 0
    sampling: str = ""
    training: str = ""
    decoding: str = ""

    @property
    def places(self) -> Places:
        """Where the run has its files, as the quickstart's stages know them."""
        return Places(configs=self.configs, runs=self.runs, data=f"{self.runs}/data")

    @property
    def base_files(self) -> list[str]:
        """The files that decide what the base does."""
        return [f"{self.base}/{file}" for file in ("config.json", "model.safetensors", "tokenizer.json")]

    @property
    def adapter_files(self) -> list[str]:
        """The files of both pairs' adapters."""
        files = ("adapter_config.json", "adapter_model.safetensors")
        return [f"{self.runs}/tuned_{pair}/{file}" for pair in PAIRS for file in files]

    @property
    def model_files(self) -> list[str]:
        """The files of the base and of every guide."""
        return [*self.base_files, *self.adapter_files, *self.places.weights("value")]


REAL = Size(num_prompts=48, num_shown=20)
SMALL = Size(
    runs="runs/smollm2-small",
    configs="runs/smollm2-small/configs",
    num_prompts=16,
    num_shown=16,
    sampling=" --max_prompts 48",
    training=" --num_train_epochs 1",
)
FULL = "runs/smollm2-full"
NUM_FULL = 200


def of_seed(seed: int) -> Size:
    """Describe a run whose guides are trained with another seed."""
    runs = f"{RUNS}-seed-{seed}"
    return Size(runs=runs, configs=f"{runs}/configs", num_prompts=NUM_FULL, num_shown=20, seed=seed)


def fetching() -> list[Stage]:
    """List the stage that fetches the base, which runs of every size share; none where a model lies there.

    The folder is written whole or not at all; another model with a chat template may be put there instead.
    """
    if (ROOT / REAL.base / "config.json").is_file():
        return []
    title = "fetch SmolLM2-135M-Instruct (a download of 93 MB) and make a model folder of it"
    return [REAL.places.stage("fetch", title, [f"python {RECIPE}/fetch.py {REAL.base}"], [], "base")]


def trainings(size: Size) -> list[Stage]:
    """List the stages from instructions to guides, and what the guides know of validation answers."""
    places, preparing = size.places, size.places.config("prepare")
    sampled = {"train": f"{size.runs}/rollouts", "validation": f"{size.runs}/rollouts_validation"}
    brief = {split: f"{folder}_brevity" for split, folder in sampled.items()}
    return [
        places.stage(
            "prepare",
            "write instructions",
            [f"python {RECIPE}/prepare.py --config {preparing}"],
            [f"{RECIPE}/instructions.py", f"{RECIPE}/prepare.py", preparing],
            "data",
        ),
        sampling(size, sampled, brief),
        tuning(size, "tone", sampled.values()),
        tuning(size, "brevity", brief.values()),
        training(
            size,
            "value",
            "train the value model of tone (FUDGE)",
            "value",
            "value",
            [f"{folder}/completions.jsonl" for folder in sampled.values()],
        ),
        ranking(size, sampled["validation"], brief["validation"]),
    ]


def sampling(size: Size, sampled: Mapping[str, str], brief: Mapping[str, str]) -> Stage:
    """Describe the stage that samples answers for tone, and labels the same ones for brevity."""
    configs = [size.places.config(name) for name in ("rollouts", "rollouts_validation")]
    commands = [f"ivg train rollouts --config {config}{size.sampling}" for config in configs]
    commands += [
        f"{RECIPE}/label.py {sampled[split]} {brief[split]} answer_rewards.brevity" for split in sampled
    ]
    prompts = [f"{size.runs}/data/prompts.{split}.jsonl" for split in sampled]
    return Stage(
        name="rollouts",
        title="sample answers of the base, and label them with both rewards",
        commands=[in_one_process(commands)],
        inputs=[*configs, REWARDS, f"{RECIPE}/label.py", *size.base_files, *prompts],
        outputs=[*sampled.values(), *brief.values()],
    )


def tuning(size: Size, pair: str, data: Iterable[str]) -> Stage:
    """Describe the stage that trains a pair's tuned half."""
    preferences = [f"{folder}/preferences.jsonl" for folder in data]
    title = f"tune the base for {pair} (DPO, LoRA)"
    return training(size, f"dpo_{pair}", title, "dpo", f"tuned_{pair}", preferences)


def training(size: Size, name: str, title: str, kind: str, output: str, data: Sequence[str]) -> Stage:
    """Describe a stage that trains a guide by the YAML of its name."""
    config = size.places.config(name)
    command = f"ivg train {kind} --config {config}{size.training}"
    return size.places.stage(
        name, title, [in_one_process([command])], [config, *size.base_files, *data], output
    )


def ranking(size: Size, toned: str, brief: str) -> Stage:
    """Describe the stage that measures how well the guides rank validation answers, from parts of them."""
    runs = size.runs
    data = {"tone": f"{toned}/completions.jsonl", "brevity": f"{brief}/completions.jsonl"}
    value = {"tone": f" --value {runs}/value", "brevity": ""}
    commands = [
        f"ivg eval reward-accuracy --data {file} --untuned {size.base} --tuned {runs}/tuned_{pair}"
        f"{value[pair]} --output {runs}/accuracy_{pair}"
        for pair, file in data.items()
    ]
    return Stage(
        name="accuracy",
        title="measure how well the guides rank answers that they have not seen",
        commands=[in_one_process(commands)],
        inputs=[*data.values(), *size.model_files],
        outputs=[f"{runs}/accuracy_{pair}" for pair in data],
    )


def decoding(size: Size, methods: Sequence[str], runs: str) -> Stage:
    """Describe the stage that answers the test prompts by every method."""
    folder, configs = f"{runs}/decoded", [size.places.config(f"decode/{method}") for method in methods]
    commands = [
        f"ivg-decode --config {config} limit={size.num_prompts} output={folder}/{method}.jsonl"
        + (f" trace={folder}/{method}.trace.jsonl" if method == "ivg" else "")
        + size.decoding
        for config, method in zip(configs, methods, strict=True)
    ]
    return Stage(
        name="decode",
        title=f"answer {size.num_prompts} test prompts by {len(methods)} methods",
        commands=[in_one_process(commands)],
        inputs=[*configs, *size.model_files, f"{size.runs}/data/prompts.test.jsonl"],
        outputs=[folder],
    )


def reporting(size: Size, runs: str, *read: str) -> Stage:
    """Describe the stage that judges and draws."""
    title = f"SmolLM2-135M-Instruct, guided by itself: {size.num_prompts} instructions"
    title += f", seed {size.seed}" if size.seed else ""
    commands = [
        f"{RECIPE}/real_report.py {runs} {size.runs} {size.base}",
        f"ivg eval report --folder {runs} --title '{title}' --num_samples {size.num_shown}",
    ]
    return Stage(
        name="report",
        title="judge, compare, draw",
        commands=[in_one_process(commands)],
        inputs=[f"{RECIPE}/real_report.py", REWARDS, *read, *size.base_files],
        outputs=[f"{runs}/{name}" for name in ("report.json", "report.md", "report.html", "figures")],
    )


def real(size: Size, methods: Sequence[str] = FIRST_METHODS) -> list[Stage]:
    """List the stages of `make real`, of a smaller run, or of one with another seed."""
    measured = ("decoded", "accuracy_tone", "accuracy_brevity", "value/value_evaluation.json")
    return [
        *trainings(size),
        decoding(size, methods, size.runs),
        reporting(size, size.runs, *(f"{size.runs}/{name}" for name in measured)),
    ]


def full(size: Size, runs: str) -> list[Stage]:
    """List what `make real-full` does with the guides that `make real` has trained.

    Args:
        size: of the run that trained them, with more prompts.
        runs: folder of the results.
    """
    sweep, surface = size.places.config("sweep"), size.places.config("surface")
    points = [(tone, brevity) for tone in BETAS["tone"] for brevity in BETAS["brevity"]]
    commands = [
        f"ivg-decode --config {surface} pairs.0.beta={tone} pairs.1.beta={brevity} limit={size.num_prompts} "
        f"output={runs}/surface/tone-{tone:g}-brevity-{brevity:g}.jsonl{size.decoding}"
        for tone, brevity in points
    ]
    return [
        Stage(
            name="sweep",
            title="answer validation prompts over a grid of beta, W and K",
            commands=[f"ivg eval sweep --config {sweep} output={runs}/sweep{size.decoding}"],
            inputs=[sweep, REWARDS, *size.model_files, f"{size.runs}/data/prompts.validation.jsonl"],
            outputs=[f"{runs}/sweep"],
        ),
        decoding(size, METHODS, runs),
        Stage(
            name="surface",
            title=f"answer the test prompts with {len(points)} weights of the two pairs",
            commands=[in_one_process(commands)],
            inputs=[surface, *size.model_files, f"{size.runs}/data/prompts.test.jsonl"],
            outputs=[f"{runs}/surface"],
        ),
        reporting(
            size,
            runs,
            *(f"{runs}/{name}" for name in ("decoded", "surface", "sweep")),
            *(f"{size.runs}/accuracy_{pair}" for pair in PAIRS),
        ),
    ]


def write_configs(size: Size) -> None:
    """Write the YAML files of a run that is not in the recipe's own folder."""
    recipe, folder = ROOT / RECIPE, ROOT / size.configs
    for path in [*recipe.glob("*.yaml"), *recipe.glob("decode/*.yaml")]:
        target = folder / path.relative_to(recipe)
        target.parent.mkdir(parents=True, exist_ok=True)
        # The prompts are those of every seed.
        seed = 0 if path.stem == "prepare" else size.seed
        text = moved(path.read_text(encoding="utf-8"), dataclasses.replace(size, seed=seed))
        target.write_text(text, encoding="utf-8")


def moved(text: str, size: Size) -> str:
    """Return a recipe's YAML with its paths and its seeds moved to those of another run."""
    places = {REAL.base: size.base, RUNS: size.runs}
    text = re.sub(rf"{REAL.base}\b|{RUNS}\b", lambda found: places[found[0]], text)
    return re.sub(r"\bseed: (\d+)", lambda found: f"seed: {int(found[1]) + SEED_STEP * size.seed}", text)


def seed_number(text: str) -> int:
    """Read the number of a training: 1, 2, ...; 0 is the recipe's own."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give 0, 1, 2, ...")
    return int(text)


def run_in(stages: Sequence[Stage], runs: str) -> int:
    """Run what is not finished; what is finished is remembered in a folder of the run's own."""
    return run_all(stages, ROOT / runs / "stamps", (RECIPE, QUICKSTART))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not finished, and say where the report is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--small", action="store_true", help="16 prompts, and less training")
    sizes.add_argument("--full", action="store_true", help="200 prompts, every method, the trade-off")
    sizes.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="train with another seed, for 200 prompts and every method",
    )
    given = parser.parse_args(argv)
    size = SMALL if given.small else of_seed(given.seed) if given.seed else REAL
    runs = size.runs
    if size is not REAL:
        write_configs(size)
    stages = real(size, METHODS) if given.seed else real(size)
    code = run_in(fetching(), REAL.runs) or run_in(stages, runs)
    if given.full and code == 0:
        runs = FULL
        code = run_in(full(dataclasses.replace(size, num_prompts=NUM_FULL), runs), runs)
    if code == 0:
        print(f"\nThe report is {runs}/report.html (or report.md); its numbers are in {runs}/report.json.")
    return code


if __name__ == "__main__":
    sys.exit(main())
