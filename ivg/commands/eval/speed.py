"""Seconds per prompt and memory by response length, for every setting of a grid, and the reward each buys.

    ivg eval speed --config recipes/quickstart/speed.yaml

All settings run in one process on one machine, `repeats` times in turn, so that a slow minute hits all of
them; on a CPU the memory of each is that of a further run in a process of its own. Checks the claim that
chunk guidance costs less than token guidance, and shows where the work goes.
Writes OUTPUT/speed.json and figures.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ivg.errors import exit_on_user_error, needs

with needs("eval"):
    import torch

    from ivg.evaluation.measures.decoded import row_ids
    from ivg.evaluation.measures.measures import estimate_scores
    from ivg.evaluation.measures.statistics import estimate, mean_by_prompt
    from ivg.evaluation.options import config_and_overrides
    from ivg.evaluation.output_folder import open_output, writable
    from ivg.evaluation.printing import show
    from ivg.evaluation.progress import tracked
    from ivg.evaluation.report.figures import by_length, save_png
    from ivg.evaluation.report.tables import one_reward_notes, speed_table
    from ivg.evaluation.sweep.grid import GridConfig, Run, read_grid
    from ivg.evaluation.sweep.peak_memory import peak_in_fresh_process, peak_mib, reset_peak
    from ivg.evaluation.sweep.runs import RunResult, grid_prompts, load_and_run, load_grid, run_at_length
    from ivg.evaluation.sweep.speed import costs_table, findings
    from ivg.models.prompts import Record
    from ivg.rewards import Reward, load_also, load_reward, score


FIGURES = {"seconds_per_prompt": "seconds per prompt", "peak_memory_mib": "peak memory (MiB)"}


@dataclasses.dataclass(slots=True)
class Timed:
    """The runs of a run at one length, and the most memory that one took, in MiB."""

    runs: list[RunResult] = dataclasses.field(default_factory=list)
    peak: float | None = None


def measure_all(grid: GridConfig, rows: Sequence[Record]) -> dict[tuple[int, Run], Timed]:
    """Run every run at every length, `repeats` times in turn; a run of one prompt each warms up."""
    models = load_grid(grid)
    timed = {(length, run): Timed() for length in grid.lengths for run in grid.runs}
    for run in grid.runs:
        run_at_length(grid, models, run, min(grid.lengths), rows[:1])
    with tracked(range(grid.repeats), "rounds") as rounds:
        for _ in rounds:
            for (length, run), found in timed.items():
                reset_peak()
                found.runs.append(run_at_length(grid, models, run, length, rows))
                if torch.cuda.is_available():
                    found.peak = max(found.peak or 0, peak_mib() or 0)
    if not torch.cuda.is_available():
        with tracked(timed.items(), "memory") as cells:
            for (length, run), found in cells:
                found.peak = peak_in_fresh_process(partial(load_and_run, grid, run, length, rows))
    return timed


def entry(
    length: int, run: Run, timed: Timed, rewards: Sequence[float], also: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Sum up the repeats of one run at one length."""
    first = timed.runs[0]  # texts and tokens are the same in each repeat
    ids = row_ids(first.rows)
    base_fed, *guides_fed = first.runner_tokens
    seconds = [run.seconds / len(first.rows) for run in timed.runs]
    return {
        **dataclasses.asdict(run),
        "setting": run.setting,
        "max_new_tokens": length,
        "num_prompts": len(first.rows),
        "num_tokens": statistics.mean(row["num_tokens"] for row in first.rows),
        "seconds_per_prompt": statistics.median(seconds),
        "seconds_of_each": seconds,
        "peak_memory_mib": timed.peak,
        "base_tokens_fed": base_fed,
        "guide_tokens_fed": sum(guides_fed),
        "flops_per_prompt": first.flops / len(first.rows),
        "gold_reward": estimate(mean_by_prompt(ids, rewards).values()).as_dict(),
        "also": {name: estimate_scores(mean_by_prompt(ids, scores)) for name, scores in also.items()},
    }


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, judge, report."""
    command = config_and_overrides(argv, __doc__ or "")
    path = command.config
    grid = read_grid(path, command.overrides)
    rows = grid_prompts(grid, path)
    with open_output(grid.output, "speed.json", "{") as output:
        reward, also = load_reward(grid.reward), load_also(grid.also)  # before anything is decoded for them
        report = measure_and_judge(grid, rows, reward, also)
        output.write_json(report, "speed.json")
        for key, label in FIGURES.items():
            png = output.claim("figures", f"speed_{key}.png")
            with writable(png):
                save_png(by_length(report["runs"], key, label), png)
    tables = (speed_table(report), costs_table(report["runs"]))
    show(report, tables, (*report["findings"], *one_reward_notes(report)), as_json=command.json)


def measure_and_judge(
    grid: GridConfig, rows: Sequence[Record], reward: Reward, also: Mapping[str, Reward]
) -> dict[str, Any]:
    """Return what `speed.json` holds."""
    name, runs = str(grid.reward.function or grid.reward.model), []
    for (length, run), timed in measure_all(grid, rows).items():
        out = timed.runs[0].rows
        texts = [row["response"] for row in out]
        others = {key: score(function, out, texts, key) for key, function in also.items()}
        runs.append(entry(length, run, timed, score(reward, out, texts, name), others))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    return {
        "kind": "speed",
        "reward": name,
        "also": list(also),
        "machine": f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "repeats": grid.repeats,
        "runs": runs,
        "findings": findings(runs),
    }


if __name__ == "__main__":
    main()
