"""Check lockstep on a GPU: its tests on the device, then the speed ladder of chat models in bfloat16.

    python eval/gpu_check.py                    # minutes on a card with 80 GB; random weights, no downloads
    python eval/gpu_check.py --workloads chat-1b --new_tokens 128

The tests compare responses with the CPU's in float64 (`tests/engines/lockstep/test_gpu.py`). The ladder says
how much of the time the card could not do without ("floor": reading weights and caches once, or multiplying
by the weights, whichever takes longer). Lockstep has no CUDA graphs: vLLM has, see docs/engines.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.benchmark.gpu import measure_on_gpu
from ivg.evaluation.benchmark.workloads import WORKLOADS
from ivg.evaluation.options import Parser
from ivg.evaluation.output_folder import OutputFolder, open_output

ROOT = Path(__file__).parents[1]
TESTS = "tests/engines/lockstep/test_gpu.py"
CHAT = ("chat-1b", "chat-7b")


def run_tests() -> dict[str, Any]:
    """Run the tests on the device; return pytest's exit code and last line."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "failed": failed}


def describe_card(device: str) -> dict[str, Any]:
    """Return the card's name and memory and the versions that ran on it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "card": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def format_row(rung: str, figures: dict[str, Any]) -> str:
    """Return a row of the table, with dashes for what was not measured."""
    if "not_measured" in figures:
        return f"| {rung} | not measured: {figures['not_measured']} | | | | |"
    peak = figures.get("peak_memory_mib")
    return (
        f"| {rung} | {figures['rows']} | {figures['milliseconds_per_step']:.1f} "
        f"| {figures['sampled_tokens_per_second']:,.0f} | {'' if peak is None else f'{peak / 1024:.1f}'} "
        f"| {f'{share:.0%}' if (share := figures.get('share_of_floor')) else ''} |"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False)
    parser.add_argument("--workloads", nargs="+", default=CHAT, choices=CHAT)
    parser.add_argument("--new_tokens", type=int, default=256, help="of a response (256)")
    parser.add_argument("--skip_tests", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_check"), help="folder (runs/gpu_check)")
    options = parser.parse_args(argv)
    if options.new_tokens < 30:
        raise UserError(f"new_tokens is {options.new_tokens}; give at least a chunk's 30")
    if not torch.cuda.is_available():
        raise UserError("no GPU: torch finds no CUDA device; run this on a machine that has one")
    return options


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Check, measure, print and write after every step; the exit code is that of the tests."""
    options = _parse(argv)
    with open_output(options.output, "gpu_check.json", "{") as output:
        return check(options, output)


def check(options: argparse.Namespace, output: OutputFolder) -> int:
    """Do all of it in a folder that no other check uses now."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    report: dict[str, Any] = {**describe_card("cuda"), "new_tokens": options.new_tokens, "ladders": {}}
    lines = [f"{report['card']}, {report['memory_gib']} GiB, torch {report['torch']}, bfloat16"]
    if not options.skip_tests:
        start = time.perf_counter()
        report["tests"] = run_tests()
        report["tests"]["seconds"] = time.perf_counter() - start
        lines += ["", f"Tests on the device: {report['tests']['summary']}", *report["tests"]["failed"]]
        console.print("\n".join(lines), markup=False, highlight=False)
    for name in options.workloads:
        workload = dataclasses.replace(WORKLOADS[name], new_tokens=options.new_tokens)
        table = [
            "",
            f"`{name}`, {options.new_tokens} tokens:",
            "",
            "| rung | rows | ms a step | sampled tokens/s | peak memory, GiB | floor |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        console.print("\n".join(table), markup=False, highlight=False)
        lines += table
        ladder = report["ladders"][name] = {}
        for rung, figures in measure_on_gpu(workload, dtype=torch.bfloat16, device="cuda"):
            ladder[rung] = figures
            lines.append(format_row(rung, figures))
            console.print(lines[-1], markup=False, highlight=False)
            output.write_json(report, "gpu_check.json")
            output.write_text("\n".join(lines) + "\n", "gpu_check.md")
    return int(report.get("tests", {}).get("exit_code", 0))


if __name__ == "__main__":
    sys.exit(main())
