"""Seconds per prompt and memory by response length, for every setting of a grid, and the reward each buys.

    python eval/speed.py --config recipes/quickstart/speed.yaml

All settings run in one process on one machine, `repeats` times in turn, so that a slow minute hits all of
them. Checks the claim that chunk guidance costs less than token guidance, and shows where the work goes.
Writes OUTPUT/speed.json and figures.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import ivg
from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.cells import CellRun, grid_prompts, run_cell
from ivg.evaluation.decoded import row_ids
from ivg.evaluation.figures import save_png
from ivg.evaluation.grid import Cell, GridConfig, read_grid
from ivg.evaluation.memory import peak_mib, reset_peak
from ivg.evaluation.more_figures import by_length
from ivg.evaluation.options import config_and_overrides
from ivg.evaluation.speed import findings
from ivg.evaluation.statistics import estimate, mean_by_prompt
from ivg.evaluation.tables import speed_table
from ivg.rewards import load_reward, score


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """One timed run of a cell."""

    run: CellRun
    peak: float | None


def measure_all(grid: GridConfig, rows: Sequence[Any]) -> dict[tuple[int, Cell], list[Timed]]:
    """Run every cell at every length, `repeats` times in turn; the first round of all is a warm-up."""
    decode = grid.decode
    models = ivg.load_models(decode.base, pairs=decode.pairs, values=decode.values)
    plan = [(length, cell) for length in grid.lengths for cell in grid.cells]
    timed: defaultdict[tuple[int, Cell], list[Timed]] = defaultdict(list)
    for cell in grid.cells:
        sampling = dataclasses.replace(decode.sampling, max_new_tokens=min(grid.lengths))
        run_cell(models, cell, sampling, rows[:1], max_batch_rows=decode.max_batch_rows)
    for _ in track(range(grid.repeats), "rounds"):
        for length, cell in plan:
            sampling = dataclasses.replace(decode.sampling, max_new_tokens=length)
            reset_peak()
            run = run_cell(models, cell, sampling, rows, max_batch_rows=decode.max_batch_rows)
            timed[length, cell].append(Timed(run, peak_mib()))
    return dict(timed)


def entry(length: int, cell: Cell, timed: Sequence[Timed], rewards: Sequence[float]) -> dict[str, Any]:
    """Sum up the repeats of one cell at one length."""
    run = timed[0].run  # texts and tokens are the same in each repeat
    base_fed, *guides_fed = run.lane_tokens
    peaks = [t.peak for t in timed if t.peak is not None]
    return {
        **dataclasses.asdict(cell),
        "setting": cell.setting,
        "max_new_tokens": length,
        "num_prompts": len(run.rows),
        "num_tokens": statistics.mean(row["num_tokens"] for row in run.rows),
        "seconds_per_prompt": statistics.median(t.run.seconds for t in timed) / len(run.rows),
        "seconds_of_each": [t.run.seconds / len(run.rows) for t in timed],
        "peak_memory_mib": max(peaks) if peaks else None,
        "base_tokens_fed": base_fed,
        "guide_tokens_fed": sum(guides_fed),
        "flops_per_prompt": run.flops / len(run.rows),
        "gold_reward": estimate(mean_by_prompt(row_ids(run.rows), rewards).values()).as_dict(),
    }


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, judge, report."""
    path, overrides = config_and_overrides(argv, __doc__ or "")
    grid = read_grid(path, overrides)
    if grid.repeats < 1 or not grid.lengths or min(grid.lengths) < 1:
        raise UserError(f"{path}: repeats and every one of lengths must be integers >= 1")
    rows = grid_prompts(grid, path)
    reward, name = load_reward(grid.reward), str(grid.reward.function or grid.reward.model)
    grid.output.mkdir(parents=True, exist_ok=True)
    runs = []
    for (length, cell), timed in measure_all(grid, rows).items():
        out = timed[0].run.rows
        rewards = score(reward, out, [row["response"] for row in out], name)
        runs.append(entry(length, cell, timed, rewards))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    report = {
        "kind": "speed",
        "reward": name,
        "machine": f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "repeats": grid.repeats,
        "runs": runs,
        "findings": findings(runs),
    }
    (grid.output / "speed.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for key, label in {
        "seconds_per_prompt": "seconds per prompt",
        "peak_memory_mib": "peak memory (MiB)",
    }.items():
        save_png(by_length(runs, key, label), grid.output / "figures" / f"speed_{key}.png")
    console = Console()
    console.print(speed_table(report).console())
    for line in report["findings"]:
        console.print(line)


if __name__ == "__main__":
    main()
