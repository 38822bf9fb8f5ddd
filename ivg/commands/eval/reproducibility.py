"""Measure how many responses stay the same when only the batch size changes.

    ivg eval reproducibility --dtypes float64 float32 bfloat16 --rows 16 64 1000

Logits depend in their last bits on batch shape and padding, so a draw that falls next to the border between
two tokens may land on its other side; from there on the response differs. Random weights, vocabulary 8,192.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig
from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.options import CommandOptions, option, parse_options
from ivg.evaluation.output_folder import open_result
from ivg.evaluation.printing import show
from ivg.evaluation.report.tables import Table
from ivg.models.inspection import ModelInfo
from ivg.models.loading import LoadedModel, LoadedPair, Models
from ivg.models.plan import ModelInfos, PairInfo
from ivg.run.api import generate

VOCABULARY = 8192
NUM_POSITIONS, LONGEST_PROMPT = 512, 32
DTYPES = ("float64", "float32", "bfloat16")
MOST = 100_000  # prompts, and rows of a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """What is decoded, how often."""

    dtypes: list[str] = dataclasses.field(
        default_factory=lambda: list(DTYPES), metadata={"help": "float64, float32, bfloat16 or several"}
    )
    rows: list[int] = dataclasses.field(
        default_factory=lambda: [16, 64, 1000], metadata={"help": "values of max_batch_rows"}
    )
    num_prompts: int = option(96, "prompts")
    max_new_tokens: int = option(50, "tokens of a response")
    temperature: float = option(0.7, "sampling temperature")
    logit_std: float = option(3.0, "standard deviation of the base's logits")
    output: str | None = option(None, "write the numbers there as JSON")


def tokenizer() -> PreTrainedTokenizerFast:
    """Return one with a word per id."""
    core = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def model(name: str, seed: int, layers: int, width: int, logit_std: float, dtype: str) -> LoadedModel:
    """Build a GPT-2 with random weights whose logits have the standard deviation asked for."""
    torch.manual_seed(seed)
    sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": NUM_POSITIONS}
    module = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **sizes))
    with torch.no_grad():
        module.transformer.ln_f.weight *= logit_std / module.eval()(torch.arange(64)[None]).logits.std()
    source, words = ModelConfig(path=name), tokenizer()
    info = ModelInfo(
        name=name, source=source, config=module.config, tokenizer=words, template="{prompt}", kind="causal"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = module.to(device, getattr(torch, dtype)).requires_grad_(False)
    return LoadedModel(info, module, is_ours=True)


def build(dtype: str, logit_std: float) -> Models:
    """Return a base of 8 layers x 512 and a pair of 4 layers x 256."""
    base = model("base", 0, 8, 512, logit_std, dtype)
    tuned, untuned = (model(f"m{seed}", seed, 4, 256, logit_std / 2, dtype) for seed in (1, 2))
    config = PairConfig(tuned=tuned.info.source, untuned=untuned.info.source)
    info = PairInfo(config, tuned.info, untuned.info)
    return Models(ModelInfos(base.info, (info,), ()), base, (LoadedPair(info, tuned, untuned),))


def compare(runs: list[list[tuple[int, ...]]]) -> dict[str, float]:
    """Compare every two runs: share of equal responses, and first differences per draw compared."""
    couples = [c for two in itertools.combinations(runs, 2) for c in zip(*two, strict=True)]
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


def measure(options: Options, dtype: str) -> dict[str, float]:
    """Decode the same prompts at every batch size."""
    models, words = build(dtype, options.logit_std), random.Random(0)
    prompts = [
        " ".join(f"w{words.randrange(VOCABULARY)}" for _ in range(words.randint(4, LONGEST_PROMPT)))
        for _ in range(options.num_prompts)
    ]
    search = SearchConfig(token_guidance="implicit", chunk_length=10)
    sampling = SamplingConfig(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    runs = []
    for rows in options.rows:
        found = generate(
            prompts, models, search=search, sampling=sampling, max_batch_rows=rows, block_size=10_000
        )
        runs.append([response.token_ids for response in found])
    return compare(runs)


def check(options: Options) -> None:
    """Find what cannot be measured before a model is built."""
    for dtype in options.dtypes:
        if dtype not in DTYPES:
            raise UserError(f"dtypes holds {dtype!r:.60}; give some of {', '.join(DTYPES)}")
    counts = {"rows": options.rows, "num_prompts": [options.num_prompts]}
    limits = {**dict.fromkeys(counts, MOST), "max_new_tokens": NUM_POSITIONS - LONGEST_PROMPT}
    for name, numbers in {**counts, "max_new_tokens": [options.max_new_tokens]}.items():
        if not numbers or not all(1 <= number <= limits[name] for number in numbers):
            raise UserError(f"{name} is {numbers!r:.60}; give integers from 1 to {limits[name]}")
    for name, number in {"temperature": options.temperature, "logit_std": options.logit_std}.items():
        if not 0 < number < math.inf:
            raise UserError(f"{name} is {number}; give a finite number above 0")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, and write the numbers where asked."""
    options = parse_options(Options, argv, __doc__ or "")
    check(options)
    rows, results = [], {}
    with open_result(options.output, ("dtypes", "results")) as write:
        for dtype in options.dtypes:
            found = results[dtype] = measure(options, dtype)
            shares = (f"{found['identical']:.1%}", f"{found['flips_per_draw']:.1e}", f"{found['n']}")
            rows.append([dtype, *shares])
        report = {**dataclasses.asdict(options), "results": results}
        write(report)
    header = ["dtype", "identical responses", "flips per draw", "pairs of responses"]
    show(report, [Table("Responses that stay the same", header, rows)], as_json=options.json)


if __name__ == "__main__":
    main()
