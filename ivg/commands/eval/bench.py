"""Measure decoding speed rung by rung, each in a process of its own, all on the same work.

    ivg eval bench                          # what `make bench` runs: the workloads short and long
    ivg eval bench --runs 3                 # medians, on a machine that others use too
    ivg eval bench --growth                 # cost per prompt at 20 and at 100 prompts
    ivg eval bench --lengths 60 300 --workloads long      # cost per step of short and long responses
    ivg eval bench --ablation               # what each acceleration of a CPU is worth
    ivg eval bench --workloads chat-1b --dtype bfloat16     # needs a GPU

Prints a table and writes runs/bench/decode.json (decode_growth.json, decode_bfloat16.json and so on). The
table's last columns: the machine's matrix products before and after, and which share of the time the
machine could not do without, reading weights and caches at its memory rate or multiplying at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.benchmark.ablation import measure_ablation
from ivg.evaluation.benchmark.lengths import measure_lengths
from ivg.evaluation.benchmark.measure import RUNGS, measure
from ivg.evaluation.benchmark.workloads import WORKLOADS
from ivg.evaluation.options import Parser, refuse_below
from ivg.evaluation.output_folder import make_output_folder, open_result
from ivg.run.console import add_flags, print_json, set_up

MODULE = "ivg.commands.eval.bench"  # started anew for each rung
RESULT_KEYS = ("what", "results")  # by which a result of ours is recognised
COLUMNS = (
    "rung",
    "s/prompt",
    "returned tok/s",
    "sampled tok/s",
    "guide tokens",
    "MiB",
    "x naive",
    "matmul GFLOP/s",
    "floor",
)


def in_fresh_process(
    workload: str, rung: str, options: argparse.Namespace, **changed: object
) -> dict[str, Any]:
    """Run one rung in a process of its own, so that memory and warm-up are its own."""
    settings = {**vars(options), **changed}
    command = [sys.executable, "-m", MODULE, "--one", workload, rung]
    for name in ("dtype", "device", "max_batch_rows", "prompts"):
        if settings[name] is not None:
            command += [f"--{name}", str(settings[name])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{workload}, {rung}: the process ended with an error, which stands above")
    return dict(json.loads(done.stdout))


def ladder(workload: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure every rung and print the table."""
    title = f"{workload}, {options.dtype}, max_batch_rows {options.max_batch_rows}"
    num_runs = options.runs or 1
    table = Table(title=title + (f", medians of {num_runs} runs" if num_runs > 1 else ""))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "rung" else "right")
    found: dict[str, list[dict[str, Any]]] = {rung: [] for rung in RUNGS}
    for _ in range(num_runs):
        for rung, runs in found.items():
            runs.append(in_fresh_process(workload, rung, options))
    results: dict[str, Any] = {}
    for rung, runs in found.items():
        median = sorted(runs, key=lambda run: run["seconds_per_prompt"])[len(runs) // 2]
        result = results[rung] = dict(median)
        result["seconds_per_prompt_of_runs"] = [run["seconds_per_prompt"] for run in runs]
        ratio = results["naive"]["seconds_per_prompt"] / result["seconds_per_prompt"]
        result["ratio_to_naive"] = ratio
        share = result.get("share_of_floor")
        table.add_row(
            rung,
            f"{result['seconds_per_prompt']:.2f}",
            f"{result['returned_tokens_per_second']:.0f}",
            f"{result['sampled_tokens_per_second']:.0f}",
            f"{result['guide_tokens_per_prompt']:,.0f}",
            f"{result['peak_memory_mib']:,.0f}",
            f"{ratio:.1f}",
            "{:.0f}, {:.0f}".format(*result["matmul_gflops"]),
            "" if share is None else f"{share:.0%}",
        )
    console.print(table)
    return results


def growth(workload: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare 100 prompts with 20, medians of runs in turns."""
    found: dict[int, list[dict[str, Any]]] = {20: [], 100: []}
    for _ in range(options.runs or 3):
        for num_prompts, results in found.items():
            results.append(in_fresh_process(workload, "continuous batching", options, prompts=num_prompts))
    ratios = {}
    for key in ("seconds_per_prompt", "peak_memory_mib"):
        few, many = (statistics.median(r[key] for r in found[n]) for n in (20, 100))
        ratios[key] = many / few
        console.print(f"{workload}: {key} at 20 prompts {few:.2f}, at 100 {many:.2f}, ratio {many / few:.3f}")
    return {"runs": found, "ratio_100_to_20": ratios}


def by_length(workload: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare a step of short responses with one of long responses."""
    short, long = options.lengths
    found = measure_lengths(
        WORKLOADS[workload],
        (short, long),
        dtype=getattr(torch, options.dtype),
        device=options.device,
        num_prompts=options.prompts,
    )
    steps = found["seconds_per_step"]
    console.print(
        f"{workload}, {found['num_rows']} rows: {1e3 * steps[short]:.1f} ms a step at {short} tokens, "
        f"{1e3 * steps[long]:.1f} at {long}; attention and reorders alone explain "
        f"{1e3 * found['explained']:.1f} of the {1e3 * found['extra']:.1f} ms more"
    )
    return found


def ablation(workload: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare all accelerations of a CPU with all but one, in turns in this process."""
    num_runs = options.runs or 3
    found = measure_ablation(
        WORKLOADS[workload],
        dtype=getattr(torch, options.dtype),
        num_prompts=options.prompts,
        max_batch_rows=options.max_batch_rows,
        runs=num_runs,
    )
    table = Table(title=f"{workload}, {options.dtype}, CPU seconds against all, {num_runs} runs in turns")
    for column in ("accelerations", "s/prompt", "CPU s/prompt", "median ratio", "ratios"):
        table.add_column(column, justify="left" if column == "accelerations" else "right")
    for name, result in found.items():
        table.add_row(
            name,
            f"{statistics.median(result['seconds_per_prompt']):.2f}",
            f"{statistics.median(result['cpu_seconds_per_prompt']):.2f}",
            f"{result['median_ratio']:.3f}",
            ", ".join(f"{ratio:.3f}" for ratio in sorted(result["ratios"])),
        )
    console.print(table)
    return found


def _parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False)
    parser.add_argument("--workloads", nargs="+", default=["short", "long"], choices=sorted(WORKLOADS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max_batch_rows", type=int, default=256)
    parser.add_argument("--prompts", type=int, help="number of prompts; default: the workload's")
    parser.add_argument("--runs", type=int, help="in turns; reports medians (default: 1, else 3)")
    parser.add_argument("--growth", action="store_true", help="cost per prompt at 20 and at 100 prompts")
    parser.add_argument("--ablation", action="store_true", help="without each acceleration of a CPU")
    parser.add_argument(
        "--lengths",
        nargs=2,
        type=int,
        metavar=("SHORT", "LONG"),
        help="cost per step of two response lengths",
    )
    parser.add_argument(
        "--output", type=Path, help="default: runs/bench/decode.json, or named after the options"
    )
    add_flags(parser)
    parser.add_argument("--one", nargs=2, metavar=("WORKLOAD", "RUNG"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    set_up(quiet=options.quiet, verbose=options.verbose)
    _check_device(options.device)
    refuse_below(1, prompts=options.prompts)
    if options.lengths and not 0 < options.lengths[0] < options.lengths[1]:
        raise UserError(f"lengths are {options.lengths}; give a short and a longer one, both >= 1")
    if options.runs and options.lengths:
        raise UserError("--lengths takes three runs; leave --runs away")
    if options.runs is not None and (options.runs < 1 or options.runs % 2 == 0):
        raise UserError(f"runs is {options.runs}; give an odd number, so that one of them is the median")
    if options.max_batch_rows < 16:
        raise UserError(f"max_batch_rows is {options.max_batch_rows}; the workloads need at least 16")
    return options


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"device is {device!r:.60}; give cpu, or cuda") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"device is {device!r:.60}, which torch does not find here; give cpu")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, measure, print and write."""
    options = _parse_options(argv)
    if options.one:
        found = measure(
            WORKLOADS[options.one[0]],
            options.one[1],
            dtype=getattr(torch, options.dtype),
            device=options.device,
            num_prompts=options.prompts,
            max_batch_rows=options.max_batch_rows,
        )
        sys.stdout.write(json.dumps(found) + "\n")
        return
    # Each table comes when it is measured; with --json they are notes, and the numbers are the result.
    console = Console(width=None if sys.stdout.isatty() else 120, stderr=options.json)
    asked = {"growth": options.growth, "lengths": options.lengths, "ablation": options.ablation}
    what = next((name for name, is_asked in asked.items() if is_asked), "ladder")
    compare = {"growth": growth, "lengths": by_length, "ablation": ablation, "ladder": ladder}[what]
    kind = ("" if what == "ladder" else f"_{what}") + ("" if options.dtype == "float32" else "_bfloat16")
    path = options.output or Path(f"runs/bench/decode{kind}.json")
    make_output_folder(path.parent)
    with open_result(str(path), RESULT_KEYS) as write:
        report = {
            "what": what,
            "dtype": options.dtype,
            "device": options.device,
            "max_batch_rows": options.max_batch_rows,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "results": {name: compare(name, options, console) for name in options.workloads},
        }
        write(report)
    console.print(f"written to {path}")
    if options.json:
        print_json(report)


if __name__ == "__main__":
    main()
