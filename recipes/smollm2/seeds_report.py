"""Compare full runs whose guides were trained with different seeds.

    python recipes/smollm2/seeds_report.py RUNS RUNS ...        (or `make real-seeds`)

Each RUNS is a folder that `real.py --full` or `real.py --seed N` has reported on. The intervals go over the
seeds, with Student's t: what they say holds for guides that are trained again, and with two or three seeds
they are wide. Writes runs/smollm2-seeds/seeds.json and seeds.md.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.measures.statistics import estimate
from ivg.evaluation.reading import read_json
from ivg.evaluation.report.tables import Table, interval
from ivg.run.json_files import write_json

OUTPUT = Path("runs/smollm2-seeds")
TONE = "gold_reward"
MEASURES = {TONE: "tone", "TextBlob": "TextBlob", "brevity": "brevity", "finished": "finished"}
REFERENCES = ("ivg", "ivg_both_pairs")

Means = Mapping[str, Mapping[str, Sequence[float]]]


def means_by_seed(reports: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return every method's means by measure, one for each report; methods that all reports have."""
    methods = [name for name in reports[0]["methods"] if all(name in report["methods"] for report in reports)]
    return {
        name: {
            measure: [report["methods"][name][measure]["mean"] for report in reports]
            for measure in (*MEASURES, "distance_from_base")
        }
        for name in methods
    }


def over_seeds(means: Sequence[float]) -> dict[str, object]:
    """Sum the means of the seeds up."""
    return {"seeds": list(means), **estimate(means).as_dict()}


def minus(means: Means, reference: str) -> dict[str, Any]:
    """Compare a method with all others, seed by seed."""
    return {
        name: {
            measure: over_seeds([a - b for a, b in zip(means[reference][measure], own[measure], strict=True)])
            for measure in MEASURES
        }
        for name, own in means.items()
        if name != reference
    }


def means_table(means: Means) -> Table:
    """Tabulate what every method reached: tone seed by seed, all measures on average."""
    header = ["method", "tone by seed", *(f"{name} [95% over seeds]" for name in MEASURES.values())]
    rows = [
        [
            name,
            " ".join(f"{mean:.3f}" for mean in own[TONE]),
            *(interval(over_seeds(own[measure])) for measure in MEASURES),
            f"{statistics.fmean(own['distance_from_base']):+.1f}",
        ]
        for name, own in means.items()
    ]
    return Table("Methods", [*header, "distance, nats"], rows)


def differences_table(differences: Mapping[str, Any], reference: str) -> Table:
    """Tabulate a method minus all others."""
    header = ["method", *MEASURES.values()]
    rows = [
        [name, *(interval(found[measure], signed=True) for measure in MEASURES)]
        for name, found in differences.items()
    ]
    return Table(f"{reference} minus the others [95% over seeds]", header, rows)


@exit_on_user_error
def main(arguments: Sequence[str]) -> None:
    """Compare, write, print."""
    if len({Path(folder).resolve() for folder in arguments}) < max(2, len(arguments)):
        raise UserError(
            f"got {' '.join(arguments) or 'nothing'}; give two or more folders of runs, all different"
        )
    made_by = "what recipes/smollm2/real.py reports"
    means = means_by_seed([read_json(Path(folder) / "report.json", made_by) for folder in arguments])
    if missing := set(REFERENCES) - means.keys():
        raise UserError(f"not every run has {sorted(missing)[0]}; run real.py --full and real.py --seed N")
    differences = {name: minus(means, name) for name in REFERENCES}
    tables = [means_table(means), *(differences_table(differences[name], name) for name in REFERENCES)]
    OUTPUT.mkdir(parents=True, exist_ok=True)
    methods = {
        name: {measure: over_seeds(found) for measure, found in own.items()} for name, own in means.items()
    }
    write_json(
        OUTPUT / "seeds.json", {"runs": list(arguments), "methods": methods, "differences": differences}
    )
    written = [f"## {table.title}\n\n{table.markdown()}\n" for table in tables]
    (OUTPUT / "seeds.md").write_text("\n".join(written), encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table.console())


if __name__ == "__main__":
    main(sys.argv[1:])
