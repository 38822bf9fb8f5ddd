"""Decode a grid of guidance settings with one model load; gold reward against distance and against compute.

    ivg eval sweep --config recipes/quickstart/sweep.yaml

A run that is finished is not run again, unless its settings or the models' files changed. Writes
OUTPUT/<run>.jsonl, sweep.json and figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.errors import UserError, exit_on_user_error, needs

with needs("eval"):
    from ivg.evaluation.measures.decoded import read_decoded
    from ivg.evaluation.measures.distance import encode_response, response_nll
    from ivg.evaluation.measures.measures import compare, measure, missing_reasons
    from ivg.evaluation.options import config_and_overrides
    from ivg.evaluation.output_folder import OutputFolder, open_output, writable
    from ivg.evaluation.printing import show
    from ivg.evaluation.progress import tracked
    from ivg.evaluation.reading import read_json
    from ivg.evaluation.report.figures import save_png
    from ivg.evaluation.report.frontiers import sweep_frontiers
    from ivg.evaluation.report.tables import one_reward_notes, sweep_table
    from ivg.evaluation.sweep.grid import GridConfig, Run, read_grid
    from ivg.evaluation.sweep.runs import decode_run, grid_prompts, load_grid, weight_files
    from ivg.models.loading import LoadedModel, Models, load_models
    from ivg.models.prompts import Record
    from ivg.rewards import Reward, load_also, load_reward, score
    from ivg.run.output_files import content_hash


class Sweep:
    """Decodes the runs that are not finished; the guides are loaded only if one is open."""

    def __init__(self, grid: GridConfig, rows: Sequence[Record], output: OutputFolder) -> None:
        self.grid, self.rows, self.output = grid, rows, output
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

    def finish(self, run: Run) -> dict[str, Any]:
        """Return a run's statistics, after decoding it if need be."""
        decode = self.grid.decode
        asdict = dataclasses.asdict
        settings = [asdict(run), asdict(decode.sampling), asdict(decode.base)]
        guides = [*map(asdict, decode.pairs), *map(asdict, decode.values)]
        settings_hash = content_hash([settings, guides, weight_files(decode), list(self.rows)])
        known = read_finished(self.output.path, run, num_records=len(self.rows))
        if known is not None and known["settings_hash"] == settings_hash:
            return known
        for suffix in ("jsonl", "json"):
            self.output.claim(f"{run.name}.{suffix}")
        found = decode_run(self.models, run, decode.sampling, self.rows, max_batch_rows=decode.max_batch_rows)
        self.output.write_json_lines(found.rows, f"{run.name}.jsonl")
        stats = {
            "settings_hash": settings_hash,
            "seconds_per_prompt": found.seconds / len(self.rows),
            "tokens_fed": found.tokens_fed,
            "flops_per_prompt": found.flops / len(self.rows),
        }
        self.output.write_json(stats, f"{run.name}.json")  # last: it says that the run is whole
        return stats


def read_finished(folder: Path, run: Run, *, num_records: int) -> dict[str, Any] | None:
    """Return the statistics of a run that is there and whole; None where it must be decoded (again)."""
    stats_path, responses_path = (folder / f"{run.name}.{suffix}" for suffix in ("json", "jsonl"))
    if not stats_path.exists() or not responses_path.exists():
        return None
    try:
        known = read_json(stats_path, "a run's statistics")
        is_whole = len(read_decoded(run.name, responses_path).rows) == num_records
    except UserError:
        return None
    return dict(known) if is_whole and is_statistics(known) else None


def is_statistics(known: object) -> bool:
    """Tell whether JSON is what `Sweep.finish` returns."""
    return (
        isinstance(known, Mapping)
        and isinstance(known.get("settings_hash"), str)
        and isinstance(known.get("flops_per_prompt"), float)
        and isinstance(known.get("seconds_per_prompt"), float)
        and isinstance(known.get("tokens_fed"), Mapping)
        and all(isinstance(count, int) for count in known["tokens_fed"].values())
    )


def judge(grid: GridConfig, base: LoadedModel, reward: Reward, also: Mapping[str, Reward]) -> dict[str, Any]:
    """Measure every run's responses and compare them with the base's."""
    name = str(grid.reward.function or grid.reward.model)
    measured, missing = {}, {}
    with tracked(grid.runs, "judging") as runs:
        for run in runs:
            file = read_decoded(run.name, grid.output / f"{run.name}.jsonl")
            rewards = score(reward, file.rows, file.responses, name)
            encoded = [
                encode_response(
                    base.info.tokenizer,
                    row,
                    template=base.info.template,
                    chat_template_kwargs=base.info.source.chat_template_kwargs,
                )
                for row in file.rows
            ]
            others = {key: score(function, file.rows, file.responses, key) for key, function in also.items()}
            measured[run.name] = measure(file, rewards, response_nll(base.module, encoded), others)
            missing[run.name] = missing_reasons(file, rewards)
    report = compare(measured, base="base", reference="base", also=list(also))
    for run_name, reasons in missing.items():
        report["methods"][run_name]["missing"] = reasons
    return {"reward": name, **report}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid."""
    command = config_and_overrides(argv, __doc__ or "")
    path = command.config
    grid = read_grid(path, command.overrides)
    rows = grid_prompts(grid, path)
    with open_output(grid.output, "sweep.json", "{") as output:
        reward, also = load_reward(grid.reward), load_also(grid.also)  # before anything is decoded for them
        sweep = Sweep(grid, rows, output)
        with tracked(grid.runs, "decoding") as runs:
            cost = {run.name: sweep.finish(run) for run in runs}
        report: dict[str, Any] = {"kind": "sweep", "cost": cost, **judge(grid, sweep.base, reward, also)}
        report["cells"] = [
            {"name": run.name, "method": run.method, "setting": run.setting, **dataclasses.asdict(run)}
            for run in grid.runs
        ]
        for name, figure in sweep_frontiers(report).items():
            png = output.claim("figures", f"{name}.png")
            with writable(png):
                save_png(figure, png)
        output.write_json(report, "sweep.json")
    show(report, [sweep_table(report)], one_reward_notes(report), as_json=command.json)


if __name__ == "__main__":
    main()
