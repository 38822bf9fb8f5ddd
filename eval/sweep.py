"""Decode a grid of guidance settings with one model load; gold reward against distance and against compute.

    python eval/sweep.py --config recipes/quickstart/sweep.yaml

A cell that is finished is not run again, unless its settings or the models' files changed. Writes
OUTPUT/<cell>.jsonl, sweep.json and figures.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ivg.errors import exit_on_user_error, needs

with needs("eval"):
    from rich.console import Console
    from rich.progress import track

    from ivg.evaluation.measures.decoded import read_decoded
    from ivg.evaluation.measures.distance import encode_response, response_nll
    from ivg.evaluation.measures.measures import compare, measure, missing_reasons
    from ivg.evaluation.options import config_and_overrides, make_output_folder
    from ivg.evaluation.report.figures import save_png
    from ivg.evaluation.report.frontiers import sweep_frontiers
    from ivg.evaluation.report.tables import sweep_table
    from ivg.evaluation.sweep.grid import Cell, GridConfig, read_grid
    from ivg.evaluation.sweep.runs import grid_prompts, load_grid, run_cell, weight_files
    from ivg.models.loading import LoadedModel, Models, load_models
    from ivg.models.prompts import Row
    from ivg.rewards import Reward, load_reward, score
    from ivg.run.json_files import write_json
    from ivg.run.output_files import content_hash


class Cells:
    """Runs cells that are not finished; the guides are loaded only if one is open."""

    def __init__(self, grid: GridConfig, rows: Sequence[Row]) -> None:
        self.grid, self.rows = grid, rows
        self._models: Models | None = None

    @property
    def models(self) -> Models:
        """The models, loaded at their first use."""
        if self._models is None:
            self._models = load_grid(self.grid)
        return self._models

    @property
    def base(self) -> LoadedModel:
        """The base, which judges; loaded alone where nothing was decoded."""
        return (self._models or load_models(self.grid.decode.base)).base

    def finish(self, cell: Cell) -> dict[str, Any]:
        """Return a cell's statistics, after decoding it if need be."""
        decode = self.grid.decode
        path = self.grid.output / f"{cell.name}.json"
        settings = [dataclasses.asdict(part) for part in (cell, decode.sampling, decode.base)]
        guides = [dataclasses.asdict(part) for part in (*decode.pairs, *decode.values)]
        fingerprint = content_hash([settings, guides, weight_files(decode), list(self.rows)])
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["settings_hash"] == fingerprint:
                return dict(known)
        run = run_cell(self.models, cell, decode.sampling, self.rows, max_batch_rows=decode.max_batch_rows)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in run.rows)
        path.with_suffix(".jsonl").write_text(lines, encoding="utf-8")
        stats = {
            "settings_hash": fingerprint,
            "seconds_per_prompt": run.seconds / len(self.rows),
            "tokens_fed": run.tokens_fed,
            "flops_per_prompt": run.flops / len(self.rows),
        }
        write_json(path, stats)  # last: it says that the cell is whole
        return stats


def judge(grid: GridConfig, base: LoadedModel, reward: Reward) -> dict[str, Any]:
    """Measure every cell's responses and compare them with the base's."""
    name = str(grid.reward.function or grid.reward.model)
    measured, missing = {}, {}
    for cell in track(grid.cells, "judging"):
        file = read_decoded(cell.name, grid.output / f"{cell.name}.jsonl")
        rewards = score(reward, file.rows, file.responses, name)
        encoded = [
            encode_response(base.info.tokenizer, row, template=base.info.template) for row in file.rows
        ]
        measured[cell.name] = measure(file, rewards, response_nll(base.module, encoded))
        missing[cell.name] = missing_reasons(file, rewards)
    report = compare(measured, base="base", reference="base")
    for cell_name, reasons in missing.items():
        report["methods"][cell_name]["missing"] = reasons
    return {"reward": name, **report}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid."""
    path, overrides = config_and_overrides(argv, __doc__ or "")
    grid = read_grid(path, overrides)
    cells = Cells(grid, grid_prompts(grid, path))
    make_output_folder(grid.output)
    reward = load_reward(grid.reward)  # before anything is decoded for it
    cost = {cell.name: cells.finish(cell) for cell in track(grid.cells, "decoding")}
    report: dict[str, Any] = {"kind": "sweep", "cost": cost, **judge(grid, cells.base, reward)}
    report["cells"] = [
        {"name": c.name, "method": c.method, "setting": c.setting, **dataclasses.asdict(c)}
        for c in grid.cells
    ]
    for name, figure in sweep_frontiers(report).items():
        save_png(figure, grid.output / "figures" / f"{name}.png")
    (grid.output / "sweep.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    Console().print(sweep_table(report).console())


if __name__ == "__main__":
    main()
