"""Judge every method of `evidence.py` over prompts and over training seeds, and compare them with IVG.

    python recipes/quickstart/evidence_report.py

Two intervals stand apart, for they answer two questions. Over prompts: the scores of a prompt are averaged
over the seeds, and Student's t goes over the prompts; it holds for these trained models. Over seeds: the
means of the seeds, with Student's t at 2 degrees of freedom; it holds for models that were trained again.
"""

import dataclasses
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import best_of_n
import guides_accuracy
import review_reward
from evidence import RUNS, SEEDS, places_of
from rich.console import Console
from run import ROOT
from stages import read_stamp
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from ivg.errors import exit_on_user_error
from ivg.evaluation.measures.decoded import read_decoded
from ivg.evaluation.measures.distance import encode_response, response_nll
from ivg.evaluation.measures.divergence import best_of_n_bound, sampled_kl, sampled_log_ratio, search_bound
from ivg.evaluation.measures.prefix_scores import PERCENTS
from ivg.evaluation.measures.statistics import Scores, estimate, estimate_rate, paired_difference
from ivg.evaluation.reading import read_json, read_json_lines
from ivg.evaluation.report.figures import save_png
from ivg.evaluation.report.frontiers import FrontierPoint, frontier
from ivg.evaluation.report.tables import Table, interval, number
from ivg.rewards import vader_completion
from ivg.run.json_files import write_json

Row = Mapping[str, Any]
NUM_DRAWS = 256
NUM_BEST = (4, 16, 64, NUM_DRAWS)
TEMPERATURE = 0.7  # of every decoding run here
REFERENCE = "ivg-beta0.5-W4-K4-L5"
# The runs that are guided by one of the guides alone, with the reference's settings.
_, _BETA, *_SEARCH = REFERENCE.split("-")
PAIR_ALONE, VALUE_ALONE = f"token_implicit-{_BETA}", "-".join(["chunk_explicit", *_SEARCH])


@dataclasses.dataclass(slots=True)
class Method:
    """One method's responses in one seed.

    Attributes:
        rows: a response for each prompt.
        gflop: arithmetic of all models, a prompt.
        seconds: a prompt, where it was timed by itself.
        kl: divergence from the base in nats, or a bound; None where neither is known.
        kl_kind: which of them, and how it is known.
        scores: by measure, each prompt's.
    """

    rows: Sequence[Row]
    gflop: float | None = None
    seconds: float | None = None
    kl: float | None = None
    kl_kind: str = ""
    scores: dict[str, Scores] = dataclasses.field(default_factory=dict)


def seed_methods(seed: int) -> dict[str, Method]:
    """Read every method's responses of one seed."""
    folder = ROOT / places_of(seed).runs
    found = dict(swept(folder / "methods")) | {
        name: method for name, method in swept(folder / "methods_guided_value") if name != "base"
    }
    for name in ("tuned", "tuned_base"):
        rows = read_decoded(name, folder / "alone" / f"{name}.jsonl").rows
        found[name] = Method(rows, gflop=plain_gflop(AutoModelForCausalLM, folder / name, rows))
    found |= drawn(folder, seed, found)
    return found


def swept(folder: Path) -> Iterator[tuple[str, Method]]:
    """Yield the runs of a sweep."""
    report = read_json(folder / "sweep.json", "what `ivg eval sweep` writes")
    for run in report["cells"]:
        cost = report["cost"][run["name"]]
        rows = read_decoded(run["name"], folder / f"{run['name']}.jsonl").rows
        yield run["name"], Method(rows, cost["flops_per_prompt"] / 1e9, cost["seconds_per_prompt"])


def drawn(folder: Path, seed: int, others: Mapping[str, Method]) -> dict[str, Method]:
    """Read best-of-N off the draws: by the value model, by the gold reward, and at the cost of IVG."""
    lines = read_json_lines(folder / "draws.scored.jsonl", "what best_of_n.py writes")
    samples = [row for _, row in lines]
    rows = [{**sample, "response": sample["completion"]} for sample in samples]
    prompts = {row["id"] for row in rows}
    per_sample = plain_gflop(AutoModelForCausalLM, folder / "base", rows) + plain_gflop(
        AutoModelForTokenClassification, folder / "value", rows
    )
    stamp = read_stamp(ROOT / RUNS / "stamps", f"seed-{seed}-draws")
    seconds = stamp["seconds"] / (len(prompts) * NUM_DRAWS) if stamp else None
    ivg = others[REFERENCE]
    named = {f"best_of_{n}": n for n in NUM_BEST}
    named["best_of_n_equal_flops"] = within(ivg.gflop, per_sample)
    named["best_of_n_equal_seconds"] = within(ivg.seconds, seconds)
    found = {}
    for name, n in named.items():
        chosen = best_of_n.first_n(rows, n, "value")
        bound = best_of_n_bound(n)
        found[name] = Method(chosen, n * per_sample, seconds and n * seconds, bound, f"bound, N={n}")
    for n in (16, NUM_DRAWS):
        chosen = best_of_n.first_n(rows, n, "reward")
        found[f"best_of_{n}_by_gold_reward"] = Method(chosen, kl=best_of_n_bound(n), kl_kind=f"bound, N={n}")
    return found


def within(budget: float | None, each: float | None) -> int:
    """Return how many samples cost what a budget allows: at least one, at most what was drawn."""
    return max(1, min(NUM_DRAWS, round(budget / each))) if budget and each else 1


def plain_gflop(kind: Any, folder: Path, rows: Sequence[Row]) -> float:
    """Return 2 x weights of matrix products x tokens of one response and its prompt, on average, in GFLOP."""
    model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    weights = sum(
        module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear | Conv1D)
    )
    prompts = {row["prompt"]: len(tokenizer(row["prompt"])["input_ids"]) for row in rows}
    tokens = statistics.fmean(prompts[row["prompt"]] + row["num_tokens"] for row in rows)
    return 2 * weights * tokens / 1e9


def judge(methods: Mapping[str, Method], seed: int) -> None:
    """Score every method's responses, and find what is known of its divergence from the base."""
    folder = ROOT / places_of(seed).runs
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder / name).eval()
        for name in ("base", "tuned", "untuned", "tuned_base")
    }
    base_nll: Scores = {}
    for name, method in {"base": methods["base"], **methods}.items():
        encoded = [encode_response(tokenizer, row) for row in method.rows]
        ids, texts = [row["id"] for row in method.rows], [row["response"] for row in method.rows]
        columns = {
            "gold": review_reward.gold(method.rows, texts),
            "valid": review_reward.valid(method.rows, texts),
            "VADER": vader_completion(method.rows, texts),
            "tokens": [float(row["num_tokens"]) for row in method.rows],
            "nll": response_nll(models["base"], encoded),
        }
        method.scores = {key: dict(zip(ids, values, strict=True)) for key, values in columns.items()}
        base_nll = base_nll or method.scores["nll"]
        nll = method.scores["nll"]
        method.scores["distance"] = {prompt: nll[prompt] - base_nll[prompt] for prompt in nll}
        if method.kl is None:
            method.kl, method.kl_kind = divergence(name, method, models, encoded)


def divergence(
    name: str, method: Method, models: Mapping[str, Any], encoded: Sequence[Any]
) -> tuple[float | None, str]:
    """Estimate or bound a method's divergence from the base, in nats a response."""
    if name == "base":
        return 0.0, "exact"
    if name in ("tuned", "tuned_base"):
        # The formula of token guidance with the base as the untuned half and beta 1 is the policy itself.
        trio = [models["base"], models[name], models["base"]]
        return statistics.fmean(sampled_kl(trio, [encoded] * 3, beta=1.0, temperature=TEMPERATURE)), "sampled"
    pair = [models["base"], models["tuned"], models["untuned"]]
    settings = dict(part.split("=") for part in settings_of(name))
    beta = float(settings.get("beta", 0))
    if "W" not in settings:
        found = sampled_kl(pair, [encoded] * 3, beta=beta, temperature=TEMPERATURE)
        return statistics.fmean(found), "sampled"
    width, successors = int(settings["W"]), int(settings["K"])
    if settings["L"] == "all":
        bound = best_of_n_bound(width * successors)
    else:
        length = int(settings["L"])
        chunks = statistics.fmean(-(-row["num_tokens"] // length) for row in method.rows)
        bound = search_bound(width, successors, chunks)
    if not beta:
        return bound, "bound"
    ratio = sampled_log_ratio(pair, [encoded] * 3, beta=beta, temperature=TEMPERATURE)
    return bound + statistics.fmean(ratio), "bound + sampled"


def settings_of(name: str) -> Iterator[str]:
    """Yield `beta=1`, `W=4`, ... from the name of a sweep's run, such as ivg-beta1-W4-K4-L5."""
    for part in name.split("-")[1:]:
        key = "beta" if part.startswith("beta") else part[0]
        yield f"{key}={part.removeprefix(key)}"


def over_prompts(by_seed: Sequence[Scores]) -> Scores:
    """Average each prompt's score over the seeds."""
    return {prompt: statistics.fmean(scores[prompt] for scores in by_seed) for prompt in by_seed[0]}


def summary(name: str, runs: Sequence[Mapping[str, Method]]) -> dict[str, Any]:
    """Sum one method up over prompts and over seeds."""
    own = [methods[name] for methods in runs]
    gold = [method.scores["gold"] for method in own]
    reference = [methods[REFERENCE].scores["gold"] for methods in runs]
    differences = [
        {prompt: ivg[prompt] - other[prompt] for prompt in ivg}
        for ivg, other in zip(reference, gold, strict=True)
    ]
    valid = [score for method in own for score in method.scores["valid"].values()]
    means = {
        key: estimate(over_prompts([method.scores[key] for method in own]).values()).as_dict()
        for key in ("VADER", "tokens", "distance")
    }
    return {
        "seeds": [statistics.fmean(scores.values()) for scores in gold],
        "gold": estimate(over_prompts(gold).values()).as_dict(),
        "gold_over_seeds": estimate(statistics.fmean(scores.values()) for scores in gold).as_dict(),
        "difference": paired_difference(over_prompts(reference), over_prompts(gold)).as_dict(),
        "difference_over_seeds": estimate(
            statistics.fmean(scores.values()) for scores in differences
        ).as_dict(),
        # All prompts of all seeds: a prompt's reviews by models of different seeds are different trials.
        "valid": estimate_rate(valid).as_dict(),
        "valid_by_seed": [statistics.fmean(method.scores["valid"].values()) for method in own],
        **means,
        **{key: mean_of(getattr(method, key) for method in own) for key in ("gflop", "seconds", "kl")},
        "kl_kind": own[0].kl_kind if len({method.kl_kind for method in own}) == 1 else "bound",
    }


def mean_of(values: Iterator[float | None]) -> float | None:
    """Average what is known of every seed."""
    known = list(values)
    return (
        None if any(value is None for value in known) else statistics.fmean(v for v in known if v is not None)
    )


def validation_means(seed: int) -> dict[str, float]:
    """Read each setting's mean gold reward on the validation prompts, by the names of the sweep."""
    report = read_json(ROOT / places_of(seed).runs / "sweep" / "sweep.json", "what eval/sweep.py writes")
    return {name: found["gold_reward"]["mean"] for name, found in report["methods"].items()}


def settings_table(validation: Mapping[str, Sequence[float]]) -> Table:
    """Tabulate what every setting of the grid scored on validation prompts, seed by seed."""
    rows = [
        [name, " ".join(f"{mean:.3f}" for mean in means), f"{statistics.fmean(means):.3f}"]
        for name, means in validation.items()
    ]
    return Table("Validation prompts: what the settings were chosen by", ["method", "by seed", "mean"], rows)


def methods_table(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate rewards, validity and cost."""
    header = ["method", "gold reward by seed", "mean, 95% over prompts", "95% over seeds", "valid [95%]"]
    header += ["VADER", "tokens", "GFLOP a prompt", "seconds a prompt"]
    rows = [
        [
            name,
            " ".join(f"{mean:.3f}" for mean in row["seeds"]),
            interval(row["gold"]),
            interval(row["gold_over_seeds"]).partition(" ")[2],
            interval(row["valid"]),
            number(row["VADER"]),
            number(row["tokens"], 1),
            write(row["gflop"], 2),
            write(row["seconds"], 3),
        ]
        for name, row in report.items()
    ]
    return Table(f"Gold reward and validity, {len(SEEDS)} training seeds", header, rows)


def paired_table(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate IVG minus every other method."""
    rows = [
        [
            name,
            interval(row["difference"], signed=True),
            interval(row["difference_over_seeds"], signed=True).partition(" ")[2],
        ]
        for name, row in report.items()
        if name != REFERENCE
    ]
    return Table(
        f"{REFERENCE} minus the others", ["method", "difference, 95% over prompts", "95% over seeds"], rows
    )


def divergence_table(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate how far each method is from the base."""
    header = ["method", "KL from the base (nats)", "how it is known", "distance from the base (nats) [95%]"]
    rows = [
        [name, write(row["kl"], 2), row["kl_kind"] or "not known", interval(row["distance"], 1, signed=True)]
        for name, row in report.items()
    ]
    return Table("Divergence", header, rows)


def guides_table(measured: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate how often the guides of each seed rank two responses rightly, by how much of them was read."""
    rows = [
        [f"{name}, {percent}%"]
        + [interval(guides_accuracy.accuracy(found, name, percent)) for found in measured]
        for name in (guides_accuracy.PAIR, guides_accuracy.VALUE)
        for percent in PERCENTS
    ]
    header = ["scorer, part of the response", *(f"seed {seed} [95%]" for seed in SEEDS)]
    return Table("How often the better response has the higher score", header, rows)


def predictions(
    measured: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Method]]
) -> list[dict[str, Any]]:
    """Compare the guides' accuracies with the rewards of the methods, seed by seed."""
    alone = {guides_accuracy.PAIR_METHOD: PAIR_ALONE, guides_accuracy.VALUE_METHOD: VALUE_ALONE}
    return [
        guides_accuracy.prediction(
            found,
            {name: estimate(methods[run].scores["gold"].values()).as_dict() for name, run in alone.items()},
        )
        for found, methods in zip(measured, runs, strict=True)
    ]


def write(value: float | None, digits: int) -> str:
    """Write a number that may be unknown."""
    return "–" if value is None else f"{value:.{digits}f}"


def draw(report: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw gold reward against the distance from the base and against compute."""
    places = {
        "distance": ("distance from the base (nats per response)", lambda row: row["distance"]["mean"]),
        "gflop": ("arithmetic of all models (GFLOP a prompt)", lambda row: row["gflop"]),
    }
    for name, (xlabel, x) in places.items():
        points = [
            FrontierPoint(method.partition("-")[0], f"valid {row['valid']['mean']:.2f}", x(row), row["gold"])
            for method, row in report.items()
            if x(row) is not None
        ]
        figure = frontier(points, unit="0 to 1", xlabel=xlabel, log_x=name == "gflop")
        save_png(figure, ROOT / RUNS / "figures" / f"frontier_{name}.png")


@exit_on_user_error
def main() -> None:
    """Judge, compare, write, print."""
    console, runs = Console(width=None if sys.stdout.isatty() else 120), []
    for seed in SEEDS:
        with console.status(f"judging seed {seed}"):
            methods = seed_methods(seed)
            judge(methods, seed)
            runs.append(methods)
    report = {name: summary(name, runs) for name in runs[0]}
    of_seeds = [validation_means(seed) for seed in SEEDS]
    validation = {name: [means[name] for means in of_seeds] for name in of_seeds[0]}
    with console.status("measuring the guides"):
        guides = [guides_accuracy.measure_guides(ROOT / places_of(seed).runs) for seed in SEEDS]
    found = predictions(guides, runs)
    told = guides_accuracy.describe_seeds(found)
    tables = [
        methods_table(report),
        paired_table(report),
        divergence_table(report),
        settings_table(validation),
        guides_table(guides),
    ]
    write_json(
        ROOT / RUNS / "evidence.json",
        {
            "seeds": list(SEEDS),
            "reference": REFERENCE,
            "methods": report,
            "validation": validation,
            "reward_accuracy": guides,
            "predictions": found,
        },
    )
    written = [f"## {table.title}\n\n{table.markdown()}" for table in tables]
    (ROOT / RUNS / "evidence.md").write_text("\n\n".join([*written, told]) + "\n", encoding="utf-8")
    draw(report)
    for table in tables:
        console.print(table.console())
    console.print(told)


if __name__ == "__main__":
    main()
