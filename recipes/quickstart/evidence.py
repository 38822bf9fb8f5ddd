"""What the README claims, with three training seeds and every baseline.

    python recipes/quickstart/evidence.py        (or `make evidence`)

Everything is written to runs/evidence. The prompts are the same for all seeds; models, samples and draws are
not. Every seed first answers validation prompts over a grid: what `decode/*.yaml` and `evidence/*.yaml` set
was chosen by the means over the seeds, which the report shows. Finished stages are skipped; a run that was
killed goes on when started again. A prompted base is not among the baselines: trained on reviews alone, it
follows no instructions.
"""

import re
import sys
from pathlib import Path

from run import RECIPE, REWARD, ROOT, Places, in_one_process, preparing, run_all, trainings
from stages import Stage

from ivg.errors import exit_on_user_error

RUNS = "runs/evidence"
SEEDS = (0, 1, 2)
# How far apart the seeds of two runs are: the recipe's own files use 0 and 1.
SEED_STEP = 100
# Runs whose base differs: they are decoded one by one, and not by the sweep.
ALONE = ("tuned", "tuned_base")
SWEEPS = ("methods", "methods_guided_value")


def places_of(seed: int) -> Places:
    """Say where the run of one seed has its files."""
    runs = f"{RUNS}/seed-{seed}"
    return Places(configs=f"{runs}/configs", runs=runs, data=f"{RUNS}/data", prefix=f"seed-{seed}-")


def moved(text: str, seed: int) -> str:
    """Return a recipe's YAML with its paths and its seeds moved to those of one run."""
    places = places_of(seed)
    text = text.replace("runs/quickstart/data", places.data).replace("runs/quickstart", places.runs)
    return re.sub(r"\bseed: (\d+)", lambda found: f"seed: {int(found[1]) + SEED_STEP * seed}", text)


def write_configs() -> None:
    """Write every run's YAML files, made from the recipe's own."""
    recipe = ROOT / RECIPE
    for seed in SEEDS:
        folder = ROOT / places_of(seed).configs
        for path in [*recipe.glob("*.yaml"), *recipe.glob("evidence/*.yaml")]:
            target = folder / path.relative_to(recipe)
            target.parent.mkdir(parents=True, exist_ok=True)
            # The prompts are common: made once, with the recipe's seed.
            run = 0 if path.stem == "prepare" else seed
            target.write_text(moved(path.read_text(encoding="utf-8"), run), encoding="utf-8")


def choosing(places: Places) -> Stage:
    """Describe the stage that answers validation prompts with every setting that could be chosen."""
    sweep = places.config("evidence/settings")
    trained = places.weights("base", "untuned", "tuned", "value")
    return places.stage(
        "sweep",
        "decode validation prompts over a grid of beta, W and K",
        [f"ivg eval sweep --config {sweep}"],
        [sweep, *REWARD, *trained, f"{places.data}/prompts.validation.jsonl"],
        "sweep",
    )


def baselines(places: Places) -> list[Stage]:
    """List the stages that train what the quickstart does not."""
    samples = [places.config(f"evidence/{name}") for name in ("guided_samples", "guided_samples_validation")]
    labelled = [f"{places.runs}/guided_samples/{split}" for split in ("train", "validation")]
    label = [f"{RECIPE}/label.py {split}.jsonl {split}.labelled.jsonl" for split in labelled]
    pair = places.weights("base", "untuned", "tuned")
    return [
        places.training(
            "evidence/dpo_base",
            "tune the base itself (DPO), the ceiling that costs retraining",
            "dpo",
            *places.weights("base"),
            *places.labelled("preferences"),
            output="tuned_base",
        ),
        places.stage(
            "guided_samples",
            "sample from base and pair together, and label",
            [in_one_process([*(f"ivg-decode --config {config}" for config in samples), *label])],
            [*samples, f"{RECIPE}/label.py", *REWARD, *pair, f"{places.data}/prompts.train.jsonl"],
            "guided_samples",
        ),
        places.training(
            "evidence/value_guided",
            "train a value model on those samples",
            "value",
            *places.weights("untuned"),
            *(f"{split}.labelled.jsonl" for split in labelled),
            output="value_guided",
        ),
    ]


def decodings(places: Places) -> list[Stage]:
    """List the stages that answer the test prompts."""
    alone = [places.config(f"evidence/{name}") for name in ALONE]
    sweeps = [places.config(f"evidence/{name}") for name in SWEEPS]
    draws, prompts = places.config("evidence/draws"), f"{places.data}/prompts.test.jsonl"
    trained = places.weights("base", "untuned", "tuned", "value", "value_guided")
    scored = f"{RECIPE}/best_of_n.py {places.runs}/draws {places.runs}/value {places.runs}/draws.scored.jsonl"
    return [
        places.stage(
            "alone",
            "decode with the tuned guide alone, and with the tuned base",
            [in_one_process(f"ivg-decode --config {config}" for config in alone)],
            [*alone, *places.weights(*ALONE), prompts],
            "alone",
        ),
        places.stage(
            "methods",
            "decode with every way of guidance",
            [in_one_process(f"ivg eval sweep --config {config}" for config in sweeps)],
            [*sweeps, *REWARD, *trained, prompts],
            *SWEEPS,
        ),
        places.stage(
            "draws",
            "draw 256 samples of the base for each prompt",
            [in_one_process([f"ivg train rollouts --config {draws}"])],
            [draws, *REWARD, *places.weights("base"), prompts],
            "draws",
        ),
        places.stage(
            "scores",
            "score the draws by the value model",
            [f"python {scored}"],
            [f"{RECIPE}/best_of_n.py", *places.weights("value"), f"{places.runs}/draws"],
            "draws.scored.jsonl",
        ),
    ]


def evidence() -> list[Stage]:
    """List all stages: nothing answers a test prompt before every seed's settings can be compared."""
    stages = [preparing(places_of(SEEDS[0]))]
    for places in map(places_of, SEEDS):
        stages += [*trainings(places), choosing(places)]
    for places in map(places_of, SEEDS):
        stages += [*baselines(places), *decodings(places)]
    read = [place for stage in stages[1:] for place in stage.outputs]
    report = Stage(
        name="report",
        title="judge, compare, draw",
        commands=[f"python {RECIPE}/evidence_report.py"],
        inputs=[*(f"{RECIPE}/{file}.py" for file in ("evidence_report", "guides_accuracy")), *REWARD, *read],
        outputs=[f"{RUNS}/evidence.json", f"{RUNS}/evidence.md", f"{RUNS}/figures"],
    )
    return [*stages, report]


@exit_on_user_error
def main() -> int:
    """Run what is not finished, and say where the tables are."""
    write_configs()
    code = run_all(evidence(), ROOT / RUNS / "stamps")
    if code == 0:
        print(f"\nThe tables are in {RUNS}/evidence.md; their numbers are in {Path(RUNS) / 'evidence.json'}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
