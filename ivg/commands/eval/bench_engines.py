"""Measure the engines side by side on the same models and work, each in a process of its own, in turns.

    .venv-vllm/bin/ivg eval bench-engines --runs 3 --prompts 8    # what `make bench-engines` runs
    .venv-vllm/bin/ivg eval bench-engines --prompts 2       # a quick look
    .venv-vllm/bin/ivg eval bench-engines --workloads smollm2 --base FOLDER     # with real weights

Arms: lockstep; lockstep without its compiled attention loop; vLLM; and vLLM that samples as many tokens from
the base alone, with the same arguments and a seed for each request too. Guidance: `token` samples W·K
responses of each prompt by token guidance, `ivg` searches with W·K rows and a scalar value besides.

Prints a table and writes runs/bench/engines.json. Its last columns: guided time in units of the base alone;
the same of what must be multiplied and what must be read at a step, at the least; how much more than the
larger of these was taken; the share of prompt tokens that vLLM's prefix cache held; and the tokens that it
computed again for each request, beyond reading each prompt once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ivg.errors import UserError, exit_on_user_error

# vLLM reads these when it is imported.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from rich.console import Console
from rich.table import Table

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.engine import Engine
from ivg.decoding.sequences import Task
from ivg.engines.lockstep.acceleration import VARIABLE, Accelerations, has_compiled_loops
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.vllm.refusals import installed_version, refuse_absence
from ivg.evaluation.benchmark.model_folders import (
    StepCost,
    cost_ratio,
    inspect_folders,
    save_models,
    step_cost,
)
from ivg.evaluation.benchmark.workloads import WORKLOADS, Workload
from ivg.evaluation.options import Parser, refuse_below
from ivg.evaluation.output_folder import make_output_folder, open_result
from ivg.models.loading import load_inspected
from ivg.models.plan import ModelInfos, plan_guides, reading_models, used_models
from ivg.run.console import add_flags, print_json, set_up

MODULE = "ivg.commands.eval.bench_engines"  # started anew for each arm
LOCKSTEP, NO_LOOP, VLLM, UNGUIDED = "lockstep", "lockstep, no compiled loop", "vllm", "vllm, base alone"
ARMS = (LOCKSTEP, NO_LOOP, VLLM, UNGUIDED)
GUIDANCE = ("token", "ivg")
RESULT_KEYS = ("vllm", "results")  # by which a result of ours is recognised
MAX_RATIO = 1.3  # of guided to unguided time, in units of what the models must compute or read


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A workload under one kind of guidance.

    Attributes:
        workload: models, prompts, lengths.
        guidance: `token` or `ivg`.
        num_prompts: of its prompts.
    """

    workload: Workload
    guidance: str
    num_prompts: int

    @property
    def search(self) -> SearchConfig:
        """Token guidance alone, or the workload's search."""
        if self.guidance == "ivg":
            return self.workload.search
        return SearchConfig(token_guidance="implicit", chunk_length=self.workload.new_tokens)

    @property
    def sampling(self) -> SamplingConfig:
        """As many samples as the search has rows, where none ranks."""
        samples = self.num_rows // self.num_prompts if self.guidance == "token" else 1
        return dataclasses.replace(self.workload.sampling, num_samples=samples)

    @property
    def num_rows(self) -> int:
        """Rows in the batch; each samples every token of its response."""
        return self.num_prompts * self.workload.search.rows_per_prompt

    def tasks(self, names: Sequence[str]) -> list[Task]:
        """Return its tasks; the models, by name, all read the same ids."""
        return [
            dataclasses.replace(
                task,
                index=task.index * self.sampling.num_samples + sample,
                sample=sample,
                prompt_ids=dict.fromkeys(names, next(iter(task.prompt_ids.values()))),
            )
            for task in self.workload.tasks(self.num_prompts)
            for sample in range(self.sampling.num_samples)
        ]

    def cost_ratio(self, infos: ModelInfos) -> StepCost:
        """Return what base and guides cost together, in units of the base."""
        itemsize = torch.empty(0, dtype=getattr(torch, infos.base.source.dtype)).element_size()
        columns = sum(self.workload.prompt_lengths) / 2 + self.workload.new_tokens / 2
        plans = plan_guides(infos, self.search)
        costs = [
            step_cost(info.config, self.num_rows, columns, itemsize)
            for info in (infos.base, *(info for plan in plans for info in plan.models))
        ]
        return cost_ratio(costs[0], costs[1:])


def run_arm(case: Case, arm: str, infos: ModelInfos) -> dict[str, Any]:
    """Load an arm in this process, warm it up and time the case."""
    if arm == UNGUIDED:
        return _run_base_alone(case, infos)
    plans = plan_guides(infos, case.search)
    infos = used_models(infos, plans)
    tasks = case.tasks([info.name for info in reading_models(infos.base, plans)])
    short = dataclasses.replace(tasks[0], max_tokens=case.workload.search.chunk_length)
    if arm != VLLM:
        models = load_inspected(infos)
        lockstep = LockstepEngine(
            models, case.search, case.sampling, max_batch_rows=case.num_rows, plans=plans
        )
        list(lockstep.run([short]))
        return {"seconds": _run_timed(lockstep, tasks, case), "compiled_loop": has_compiled_loops()}
    from ivg.engines.vllm.engine import prepare, start

    engine = start(prepare(infos, case.search, case.sampling, engine_args={"max_num_seqs": case.num_rows}))
    list(engine.run([short]))
    before = dataclasses.replace(engine.cache_use)
    seconds = _run_timed(engine, tasks, case)
    use = engine.cache_use
    requests, read, cached = (
        getattr(use, name) - getattr(before, name) for name in ("requests", "tokens", "cached")
    )
    once = sum(map(len, case.workload.prompts(case.num_prompts)))
    engine.close()
    return {
        "seconds": seconds,
        "requests": requests,
        "prefix_cache_hit_rate": cached / read,
        "recomputed_tokens_per_request": (read - cached - once) / requests,
    }


def _run_base_alone(case: Case, infos: ModelInfos) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine

    from ivg.engines.vllm.engine import prepare

    guided = prepare(
        used_models(infos, []), SearchConfig(), case.sampling, engine_args={"max_num_seqs": case.num_rows}
    ).engine_args
    ours = ("hf_overrides", "logits_processors", "logprobs_mode", "max_model_len")
    args = {name: value for name, value in guided.items() if name not in ours}
    engine = LLMEngine.from_engine_args(EngineArgs(**args))

    def generate(prompts: Sequence[tuple[int, ...]], num_tokens: int) -> list[int]:
        for i, ids in enumerate(prompts):
            params = SamplingParams(
                temperature=case.sampling.temperature,
                seed=i,
                max_tokens=num_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(f"{num_tokens}-{i}", {"prompt_token_ids": list(ids)}, params)
        lengths = []
        while engine.has_unfinished_requests():
            lengths += [len(output.outputs[0].token_ids) for output in engine.step() if output.finished]
        return lengths

    prompts = case.workload.prompts(case.num_prompts)
    generate(prompts[:1], case.workload.search.chunk_length)
    per_prompt = case.num_rows // case.num_prompts
    rows = [ids for ids in prompts for _ in range(per_prompt)]
    seconds, lengths = _time(lambda: generate(rows, case.workload.new_tokens))
    _check_lengths(lengths, case)
    engine.engine_core.shutdown()
    return {"seconds": seconds}


def _run_timed(engine: Engine, tasks: Sequence[Task], case: Case) -> float:
    """Decode all tasks and return the seconds taken."""
    seconds, finished = _time(lambda: list(engine.run(tasks)))
    _check_lengths([len(done.beams[0].ids) for done in finished], case)
    return seconds


def _time(work: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _check_lengths(lengths: Sequence[int], case: Case) -> None:
    """No response may end early: arms would do different work."""
    assert set(lengths) == {case.workload.new_tokens}, set(lengths)


def run_in_fresh_process(case: Case, arm: str, models: Path, dtype: str) -> dict[str, Any]:
    """Run an arm in a process of its own; what vLLM prints goes to standard error."""
    # As many threads as lockstep has: of two cores, vLLM would keep one for its scheduler.
    cpus = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
    environment = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)), **os.environ}
    if arm == NO_LOOP:
        environment[VARIABLE] = ",".join(n for n in Accelerations.names() if n != "compiled_attention")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", MODULE, "--one", case.workload.name, case.guidance, arm]
        command += ["--prompts", str(case.num_prompts), "--models", str(models), "--dtype", dtype]
        done = subprocess.run([*command, "--result", str(result)], env=environment, stdout=sys.stderr)
        if done.returncode:
            raise UserError(f"{case.workload.name}, {case.guidance}, {arm}: the process ended with an error")
        return dict(json.loads(result.read_text()))


def compare(case: Case, models: Path, options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Run all arms in turns and add a row for each to the table."""
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for _ in range(options.runs):
        for arm, runs in found.items():
            runs.append(run_in_fresh_process(case, arm, models, options.dtype))
    least = case.cost_ratio(inspect_folders(models, options.dtype))
    bound = max(least.flops, least.bytes)
    alone = [run["seconds"] for run in found[UNGUIDED]]
    results: dict[str, Any] = {"flops_ratio": least.flops, "bytes_ratio": least.bytes, "arms": {}}
    for arm, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        ratios = [own / base for own, base in zip(seconds, alone, strict=True)]
        median = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
        result = results["arms"][arm] = {
            **median,
            "seconds_of_runs": seconds,
            "seconds_per_prompt": median["seconds"] / case.num_prompts,
            "sampled_tokens_per_second": case.num_rows * case.workload.new_tokens / median["seconds"],
            "ratios_to_base_alone": ratios,
            "ratio_to_base_alone": statistics.median(ratios),
            "beyond_the_least": statistics.median(ratios) / bound,
        }
        is_vllm = arm == VLLM
        table.add_row(
            f"{case.workload.name}, {case.guidance}",
            arm,
            f"{result['seconds_per_prompt']:.2f}",
            f"{result['sampled_tokens_per_second']:.0f}",
            f"{result['ratio_to_base_alone']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{least.flops:.2f}, {least.bytes:.2f}" if is_vllm else "",
            f"{result['beyond_the_least']:.2f}" if is_vllm else "",
            f"{result['prefix_cache_hit_rate']:.0%}" if is_vllm else "",
            f"{result['recomputed_tokens_per_request']:.1f}" if is_vllm else "",
        )
    return results


def measure_all(options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Compare the arms on every workload under every guidance."""
    results: dict[str, Any] = {}
    for name in options.workloads:
        workload = WORKLOADS[name]
        with tempfile.TemporaryDirectory() as folder:
            models = Path(folder)
            save_models(workload, models, options.base if name == "smollm2" else None)
            for guidance in options.guidance:
                case = Case(workload, guidance, options.prompts or workload.num_prompts)
                results[f"{name}, {guidance}"] = compare(case, models, options, table)
    return results


def _parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False)
    names = [name for name in WORKLOADS if not name.startswith("chat")]
    parser.add_argument("--workloads", nargs="+", default=["long", "smollm2"], choices=names)
    parser.add_argument("--guidance", nargs="+", default=[*GUIDANCE], choices=GUIDANCE)
    parser.add_argument("--base", type=Path, help="folder of a model to stand for smollm2's base")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, help="number of prompts; default: the workload's")
    parser.add_argument("--runs", type=int, default=1, help="in turns; reports medians")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/engines.json"))
    add_flags(parser)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    set_up(quiet=options.quiet, verbose=options.verbose)
    refuse_below(1, runs=options.runs, prompts=options.prompts)
    if options.runs % 2 == 0:
        raise UserError(f"runs is {options.runs}; give an odd number, so that one of them is the median")
    if options.base is not None and not (options.base / "config.json").is_file():
        raise UserError(f"base {options.base} has no config.json; give a folder of save_pretrained")
    for refusal in refuse_absence():
        raise UserError(f"{refusal.asked}: {refusal.reason}; {refusal.instead}")
    return options


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, measure, print and write."""
    options = _parse_options(argv)
    if options.one:
        name, guidance, arm = options.one
        case = Case(WORKLOADS[name], guidance, options.prompts)
        result = run_arm(case, arm, inspect_folders(options.models, options.dtype))
        options.result.write_text(json.dumps(result))
        return
    title = f"{options.dtype}, {torch.get_num_threads()} threads, medians of {options.runs} runs in turns"
    table = Table(title=title)
    left = ("work", "arm")
    for column in (*left, "s/prompt", "sampled tok/s", "÷ base alone", "least (FLOPs, bytes)", "÷ least"):
        table.add_column(column, justify="left" if column in left else "right")
    table.add_column("cached", justify="right")
    table.add_column("recomputed", justify="right")
    make_output_folder(options.output.parent)
    with open_result(str(options.output), RESULT_KEYS) as write:
        results = measure_all(options, table)
        report = {
            "dtype": options.dtype,
            "base": "random weights" if options.base is None else options.base.name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "vllm": installed_version(),
            "runs": options.runs,
            "results": results,
        }
        write(report)
    if options.json:
        print_json(report)
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for name, result in results.items():
        if name.endswith("token"):
            beyond = result["arms"][VLLM]["beyond_the_least"]
            verdict = "within" if beyond <= MAX_RATIO else "NOT within"
            console.print(f"{name}: guidance took {beyond:.2f} of the least, {verdict} {MAX_RATIO}")
    console.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
