"""Measure how many responses stay the same when only the batch size changes.

    ivg eval reproducibility --dtypes float64 float32 bfloat16 --rows 16 64 1000
    ivg eval reproducibility --engine vllm --dtypes float32 bfloat16 --rows 1 64 --longest_prompt 128

Logits depend in their last bits on batch shape and padding, so a draw that falls next to the border between
two tokens may land on its other side; from there on the response differs. Random weights, vocabulary 8,192.

With vLLM also: once more with the prefix cache warm (it holds whole blocks of 32 tokens, so prompts should be
longer), and then in another order.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ivg.config import EngineName, ModelConfig, PairConfig, SamplingConfig, SearchConfig
from ivg.config.checks import require_choice
from ivg.decoding.engine import Engine, in_order, refuse
from ivg.decoding.sequences import Task
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.vllm.refusals import refuse_absence
from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.options import CommandOptions, option, parse_options
from ivg.evaluation.output_folder import open_result
from ivg.models.loading import load_inspected
from ivg.models.plan import ModelInfos, inspect_models, plan_guides, reading_models
from ivg.run.console import print_json
from ivg.run.engines import importing_vllm
from ivg.run.tasks import make_tasks

VOCABULARY = 8192
NUM_POSITIONS = 512
BASE, GUIDE = (8, 512), (4, 256)  # layers, width
SHORTEST_PROMPT = 4
DTYPES = ("float64", "float32", "bfloat16")
MOST = 100_000  # prompts, and rows of a batch
VLLM_CACHE_BYTES = 2 * 2**30  # holds the 96 prompts and responses, so that the cache stays warm

Ids = tuple[int, ...]
Shares = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """What is decoded, how often."""

    engine: str = option("lockstep", "lockstep or vllm")
    dtypes: list[str] = dataclasses.field(
        default_factory=lambda: list(DTYPES), metadata={"help": "float64, float32, bfloat16 or several"}
    )
    rows: list[int] = dataclasses.field(
        default_factory=lambda: [16, 64, 1000],
        metadata={"help": "values of max_batch_rows; with vLLM of max_num_seqs"},
    )
    num_prompts: int = option(96, "prompts")
    longest_prompt: int = option(32, "tokens of the longest; the shortest has 4")
    max_new_tokens: int = option(50, "tokens of a response")
    temperature: float = option(0.7, "sampling temperature")
    logit_std: float = option(3.0, "standard deviation of the base's logits")
    output: str | None = option(None, "write the numbers there as JSON")


def save_models(folder: Path, logit_std: float) -> None:
    """Write base and pair."""
    _save(folder / "base", 0, BASE, logit_std)
    _save(folder / "tuned", 1, GUIDE, logit_std / 2)
    _save(folder / "untuned", 2, GUIDE, logit_std / 2)


def _save(folder: Path, seed: int, shape: tuple[int, int], logit_std: float) -> None:
    """Write a GPT-2 with random weights, a word per id, and logits of the standard deviation asked for."""
    torch.manual_seed(seed)
    layers, width = shape
    sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": NUM_POSITIONS}
    ends = {"bos_token_id": None, "eos_token_id": None}
    module = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **ends, **sizes))
    with torch.no_grad():
        module.transformer.ln_f.weight *= logit_std / module.eval()(torch.arange(64)[None]).logits.std()
    module.save_pretrained(folder)
    core = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    core.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)


def inspect(folder: Path, dtype: str) -> ModelInfos:
    """Inspect what `save_models` wrote."""
    base, tuned, untuned = (
        ModelConfig(path=str(folder / name), dtype=dtype, template="{prompt}")  # type: ignore[arg-type]
        for name in ("base", "tuned", "untuned")
    )
    return inspect_models(base, [PairConfig(tuned=tuned, untuned=untuned)])


def compare(runs: Sequence[Sequence[Ids]]) -> Shares:
    """Compare every two runs of the same prompts."""
    return compare_all(itertools.combinations(runs, 2))


def compare_all(pairs_of_runs: Iterable[tuple[Sequence[Ids], Sequence[Ids]]]) -> Shares:
    """Compare runs: share of equal responses, and first differences per draw compared."""
    couples = [couple for first, second in pairs_of_runs for couple in zip(first, second, strict=True)]
    firsts = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None) for a, b in couples
    ]
    num_flips = sum(i is not None for i in firsts)
    num_draws = sum(len(a) if i is None else i + 1 for (a, _), i in zip(couples, firsts, strict=True))
    return {
        "identical": 1 - num_flips / len(couples),
        "flips_per_draw": num_flips / num_draws,
        "n": len(couples),
    }


def decode(engine: Engine, tasks: Sequence[Task], given: Sequence[Task] | None = None) -> list[Ids]:
    """Return each task's response, in the order of `tasks`, whatever the order in which they are given."""
    return [done.beams[0].ids for done in in_order(tasks, engine.run(tasks if given is None else given))]


def measure(options: Options, folder: Path, dtype: str) -> dict[str, Shares]:
    """Decode the same prompts at every batch size; returns what `compare` finds, by what was changed."""
    infos, words = inspect(folder, dtype), random.Random(0)
    lengths = (SHORTEST_PROMPT, options.longest_prompt)
    prompts = [
        {"prompt": " ".join(f"w{words.randrange(VOCABULARY)}" for _ in range(words.randint(*lengths)))}
        for _ in range(options.num_prompts)
    ]
    search = SearchConfig(token_guidance="implicit", chunk_length=10)
    sampling = SamplingConfig(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    tasks, _ = make_tasks(prompts, reading_models(infos.base, plan_guides(infos, search)), sampling)
    if options.engine == "lockstep":
        models = load_inspected(infos)
        runs = [
            decode(LockstepEngine(models, search, sampling, max_batch_rows=rows), tasks)
            for rows in options.rows
        ]
        return {"batch size": compare(runs)}
    return _measure_vllm(options, infos, search, sampling, tasks)


def _measure_vllm(
    options: Options, infos: ModelInfos, search: SearchConfig, sampling: SamplingConfig, tasks: Sequence[Task]
) -> dict[str, Shares]:
    from ivg.engines.vllm.engine import prepare, start

    shuffled = random.Random(1).sample(tasks, len(tasks))
    cold, warm, reordered = [], [], []
    for rows in options.rows:
        args = {"max_num_seqs": min(rows, len(tasks)), "kv_cache_memory_bytes": VLLM_CACHE_BYTES}
        engine = start(prepare(infos, search, sampling, engine_args=args))
        cold.append(decode(engine, tasks))
        warm.append(decode(engine, tasks))
        reordered.append(decode(engine, tasks, shuffled))
        engine.close()
    return {
        "batch size": compare(cold),
        "cache warm": compare_all(zip(cold, warm, strict=True)),
        "order, cache warm": compare_all(zip(warm, reordered, strict=True)),
    }


def check(options: Options) -> None:
    """Find what cannot be measured before a model is built."""
    require_choice("engine", options.engine, get_args(EngineName))
    for dtype in options.dtypes:
        if dtype not in DTYPES:
            raise UserError(f"dtypes holds {dtype!r:.60}; give some of {', '.join(DTYPES)}")
    counts = {"rows": options.rows, "num_prompts": [options.num_prompts]}
    lengths = {"longest_prompt": [options.longest_prompt], "max_new_tokens": [options.max_new_tokens]}
    limits = {
        **dict.fromkeys(counts, MOST),
        "longest_prompt": NUM_POSITIONS - 1,
        "max_new_tokens": NUM_POSITIONS - options.longest_prompt,
    }
    for name, numbers in {**counts, **lengths}.items():
        least = SHORTEST_PROMPT if name == "longest_prompt" else 1
        if not numbers or not all(least <= number <= limits[name] for number in numbers):
            raise UserError(f"{name} is {numbers!r:.60}; give integers from {least} to {limits[name]}")
    for name, number in {"temperature": options.temperature, "logit_std": options.logit_std}.items():
        if not 0 < number < math.inf:
            raise UserError(f"{name} is {number}; give a finite number above 0")
    if len(options.rows) < 2:
        raise UserError(f"rows is {options.rows}; give at least two numbers, which are compared")
    if options.engine == "vllm":
        if "float64" in options.dtypes:
            raise UserError("dtypes holds float64, which vLLM does not compute in; give float32, bfloat16")
        refuse("vllm", [*refuse_absence()])


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, and write the numbers where asked."""
    options = parse_options(Options, argv, __doc__ or "")
    check(options)
    if options.engine == "vllm":
        with importing_vllm():
            import ivg.engines.vllm.engine  # noqa: F401  vLLM reads the environment now
    # No table of `evaluation.report`: those need matplotlib, which vLLM's environment has not.
    header = ("dtype", "changed", "identical responses", "flips per draw", "pairs of responses")
    table, results = Table(*header, title="Responses that stay the same"), {}
    with open_result(options.output, ("dtypes", "results")) as write, tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), options.logit_std)
        for dtype in options.dtypes:
            results[dtype] = measure(options, Path(folder), dtype)
            for change, found in results[dtype].items():
                shares = (f"{found['identical']:.1%}", f"{found['flips_per_draw']:.1e}", f"{found['n']}")
                table.add_row(dtype, change, *shares)
        report = {**dataclasses.asdict(options), "results": results}
        write(report)
    if options.json:
        print_json(report)
    else:
        Console().print(table)


if __name__ == "__main__":
    main()
