"""A whole run, and what must hold between its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from ivg.config.checks import require, require_choice, require_integer
from ivg.config.models import ModelConfig, PairConfig, ValueConfig
from ivg.config.search import SamplingConfig, SearchConfig

EngineName = Literal["lockstep", "vllm"]
OnOverflow = Literal["error", "stop"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """A Hugging Face dataset as the source of prompts.

    Attributes:
        name: Hub name, or a folder.
        config: its configuration.
        split: its split.
        revision: Hub revision.
        file: a `.json` or `.jsonl` file of the repository to read as it is, instead of config and split: for
            repositories with a loading script, which `datasets` refuses.
    """

    name: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        if self.file is None:
            return
        require(
            self.file.endswith((".json", ".jsonl")),
            f"dataset file is {self.file!r}; give a .json or .jsonl file of {self.name}",
        )
        require(
            self.config is None, f"dataset {self.name}: a file has no config; give one of file and config"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """A whole `ivg-decode` run.

    Attributes:
        base: the frozen model that is guided.
        pairs: implicit value functions.
        values: explicit value functions.
        search: guidance, and the beam search over chunks.
        sampling: how tokens are drawn, and when a response ends.
        input: prompts: a file of JSON lines, a JSON list or `.txt`; `-` is standard input.
        dataset: a Hugging Face dataset instead of `input`.
        output: JSON lines of responses; `-` is standard output.
        engine: what decodes: `lockstep`, Hugging Face models side by side, or `vllm`.
        vllm: arguments of vLLM's own engine (`tensor_parallel_size`, ...); read where it decodes, which
            checks them.
        max_batch_rows: rows (prompts x W x K) decoded side by side, at least the W x K of one prompt.
        max_batch_tokens: rows times the columns that they may come to fill (prompt + max_new_tokens of the
            longest), at most; None: only the rows are bounded.
        block_size: prompts per block; an interrupted block is decoded again whole.
        on_overflow: what a prompt + max_new_tokens beyond a model's context does: `error` before the run,
            or `stop` the row at the context's end.
        skip_bad_rows: note a bad record in the output and go on, instead of refusing the file.
        return_beams: write all W kept beams of a prompt.
        return_token_ids: write the response's token ids.
        trace: JSONL file for log-ratios and chunk candidates.
        static_steps: once fixed buffers for a captured graph; only `false` is read.
        limit: decode only the first records of the input.
    """

    base: ModelConfig
    pairs: tuple[PairConfig, ...] = ()
    values: tuple[ValueConfig, ...] = ()
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    input: str | None = None
    dataset: DatasetConfig | None = None
    output: str | None = None
    engine: EngineName = "lockstep"
    vllm: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_batch_rows: int = 64
    max_batch_tokens: int | None = None
    block_size: int = 128
    on_overflow: OnOverflow = "error"
    skip_bad_rows: bool = False
    return_beams: bool = False
    return_token_ids: bool = False
    trace: str | None = None
    static_steps: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        check_guidance(self.search, self.sampling, self.pairs, self.values)
        require_choice("engine", self.engine, get_args(EngineName))
        if self.engine == "lockstep":  # vLLM lets rows wait
            check_rows(self.search, self.max_batch_rows)
        require(
            self.static_steps is False,
            f"static_steps is {str(self.static_steps).lower()}, but lockstep has no CUDA graphs any more; "
            "leave it out (vLLM has them: engine: vllm)",
        )
        require_integer("block_size", self.block_size, at_least=1)
        for name in ("limit", "max_batch_tokens"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), at_least=1)
        require_choice("on_overflow", self.on_overflow, get_args(OnOverflow))
        require(self.input is None or self.dataset is None, "input and dataset exclude each other; give one")


def check_rows(search: SearchConfig, max_batch_rows: int) -> None:
    """Refuse a batch that has no room for one prompt."""
    require_integer("max_batch_rows", max_batch_rows)
    rows = search.rows_per_prompt
    require(
        max_batch_rows >= rows,
        f"max_batch_rows is {max_batch_rows}, but one prompt needs num_beams x num_successors = {rows} rows; "
        "raise it",
    )


def check_guidance(
    search: SearchConfig,
    sampling: SamplingConfig,
    pairs: Sequence[PairConfig],
    values: Sequence[ValueConfig],
) -> None:
    """Refuse guidance without the models it needs, and greedy search over several rows.

    Raises:
        UserError: naming the missing or contradictory option.
    """
    for level in ("token_guidance", "chunk_guidance"):
        kind = getattr(search, level)
        require(kind != "implicit" or bool(pairs), f"{level} implicit needs a pair: give tuned and untuned")
        require(kind != "explicit" or bool(values), f"{level} explicit needs a value model: give value")
    require(
        sampling.temperature > 0 or search.rows_per_prompt == 1,
        f"temperature 0 is greedy: num_beams x num_successors = {search.rows_per_prompt} would repeat one "
        "hypothesis; set both to 1 or raise the temperature",
    )
    require(
        sampling.num_samples == 1 or search.chunk_guidance == "none",
        f"num_samples {sampling.num_samples} draws independent responses; "
        "with chunk guidance use return_beams",
    )
