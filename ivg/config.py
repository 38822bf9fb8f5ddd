"""What a decoding run is made of: frozen dataclasses, checked when built.

Nothing here touches a disk, a network or a device; `config_file.py` reads YAML into these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from ivg.errors import UserError

Guidance = Literal["none", "implicit", "explicit"]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
VocabMapping = Literal["refuse", "shared-strings"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _require_finite(name: str, weight: float | None) -> None:
    _require(weight is None or math.isfinite(weight), f"{name} is {weight}; give a finite number")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One Hugging Face model and how to load it.

    Attributes:
        path: folder or Hub name; for `tuned`, also a PEFT adapter over `untuned`.
        revision: Hub revision.
        dtype: weights' type; `auto` keeps the checkpoint's.
        device: where it runs (`cpu`, `cuda:0`); default: CUDA if there is one, else CPU.
        device_map: passed to transformers (`auto` spreads layers over devices); excludes `device`.
        quantization: `4bit` or `8bit` through bitsandbytes.
        attn_implementation: passed to transformers (`eager`, `sdpa`, `flash_attention_2`).
        trust_remote_code: run code shipped with the checkpoint.
        template: how a prompt becomes this model's text: `chat` (its own chat template), a format string
            with `{prompt}`, or unset: the chat template where the tokenizer has one, else the bare prompt.
    """

    path: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str | None = None
    device_map: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    template: str | None = None

    def __post_init__(self) -> None:
        _require(bool(self.path), "model path is empty: give a folder or a Hub name")
        _require(
            self.device is None or self.device_map is None,
            f"{self.path}: device and device_map exclude each other; give one",
        )
        _require(
            self.template is None or self.template == "chat" or "{prompt}" in self.template,
            f"{self.path}: template {self.template!r} has no '{{prompt}}'; "
            "give 'chat' or a format string that holds it",
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairConfig:
    """An implicit value function: log-ratio of `tuned` to `untuned`.

    Attributes:
        beta: weight of the log-ratio in token guidance, >= 0; larger follows the pair more.
        chunk_weight: weight in the chunk score; unset: 1 where chunk guidance is implicit, else 0.
        average: divide the chunk score by the number of tokens.
        vocab_mapping: what to do where the pair's token-to-id map differs from the base's.
    """

    tuned: ModelConfig
    untuned: ModelConfig
    beta: float = 1.0
    chunk_weight: float | None = None
    average: bool = False
    vocab_mapping: VocabMapping = "refuse"

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.beta) and self.beta >= 0, f"beta is {self.beta}; give a finite number >= 0"
        )
        _require_finite("chunk_weight", self.chunk_weight)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ValueConfig:
    """An explicit value function: a scalar head, a vocabulary head, or a sequence classifier.

    Attributes:
        model: the value model.
        weight: weight in the chunk score; unset: 1 where chunk guidance is explicit, else 0.
        beta: weight in explicit token guidance (vocabulary heads only), >= 0.
    """

    model: ModelConfig
    weight: float | None = None
    beta: float = 1.0

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.beta) and self.beta >= 0, f"beta is {self.beta}; give a finite number >= 0"
        )
        _require_finite("weight", self.weight)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Token guidance, chunk guidance and the beam search over chunks (DESIGN: W, K, L).

    Attributes:
        token_guidance: what is added to the base's next-token log-probabilities.
        chunk_guidance: what ranks the hypotheses at a chunk boundary.
        num_beams: W, beams kept at a boundary.
        num_successors: K, continuations sampled per beam.
        chunk_length: L, in tokens.
        early_stopping: end a prompt once a hypothesis finished at an earlier boundary is best again;
            otherwise once all kept beams are finished.
    """

    token_guidance: Guidance = "none"
    chunk_guidance: Guidance = "none"
    num_beams: int = 1
    num_successors: int = 1
    chunk_length: int = 30
    early_stopping: bool = True

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_successors", "chunk_length"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give an integer >= 1")
        _require(
            self.chunk_guidance != "none" or self.rows_per_prompt == 1,
            f"chunk_guidance none ranks nothing, but num_beams x num_successors is {self.rows_per_prompt}; "
            "set chunk_guidance, or num_samples for several responses",
        )

    @property
    def rows_per_prompt(self) -> int:
        """W·K, the rows one prompt owns in the batch."""
        return self.num_beams * self.num_successors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn from the combined distribution.

    Attributes:
        max_new_tokens: length limit of a response in tokens, EOS included.
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability.
        stop: strings that end a response; they are dropped from its text.
        seed: with the prompt's id, the row and the position, decides every draw.
        num_samples: responses per prompt, drawn independently.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    num_samples: int = 1

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}; give an integer >= 1")
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature is {self.temperature}; give a finite number >= 0 (0 is greedy)",
        )
        _require(self.top_k >= 0, f"top_k is {self.top_k}; give an integer >= 0 (0 keeps all tokens)")
        _require(0 < self.top_p <= 1, f"top_p is {self.top_p}; give a number above 0, at most 1")
        _require(
            not isinstance(self.stop, str), f"stop is one string, {self.stop!r}; give a tuple of strings"
        )
        _require(all(self.stop), "stop holds an empty string, which would end every response at once")
        _require(self.num_samples >= 1, f"num_samples is {self.num_samples}; give an integer >= 1")
        _require(
            self.temperature > 0 or self.num_samples == 1,
            f"temperature 0 is greedy: num_samples {self.num_samples} would repeat one response",
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """A Hugging Face dataset as the source of prompts."""

    name: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """A whole `ivg-decode` run.

    Attributes:
        max_batch_rows: rows (prompts x W x K) decoded side by side.
        block_size: prompts per block; an interrupted block is decoded again whole.
        on_overflow: what a prompt + max_new_tokens beyond a model's context does: `error` before the run,
            or `stop` the row at the context's end.
        skip_bad_rows: record a bad input row in the output and go on, instead of refusing the file.
        return_beams: write all W kept beams of a prompt.
        return_token_ids: write the response's token ids.
        trace: JSONL file for log-ratios and chunk candidates.
        static_steps: take the steps inside a chunk in fixed buffers, on a GPU as one captured graph.
        limit: decode only the first rows of the input.
    """

    base: ModelConfig
    pairs: tuple[PairConfig, ...] = ()
    values: tuple[ValueConfig, ...] = ()
    search: SearchConfig = SearchConfig()
    sampling: SamplingConfig = SamplingConfig()
    input: str | None = None
    dataset: DatasetConfig | None = None
    output: str | None = None
    max_batch_rows: int = 64
    block_size: int = 128
    on_overflow: Literal["error", "stop"] = "error"
    skip_bad_rows: bool = False
    return_beams: bool = False
    return_token_ids: bool = False
    trace: str | None = None
    static_steps: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        check_guidance(self.search, self.sampling, self.pairs, self.values)
        rows = self.search.rows_per_prompt
        _require(
            self.max_batch_rows >= rows,
            f"max_batch_rows is {self.max_batch_rows}, but one prompt needs "
            f"num_beams x num_successors = {rows} rows; raise it",
        )
        _require(self.block_size >= 1, f"block_size is {self.block_size}; give an integer >= 1")
        _require(self.limit is None or self.limit >= 1, f"limit is {self.limit}; give an integer >= 1")
        _require(self.input is None or self.dataset is None, "input and dataset exclude each other; give one")


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
        _require(kind != "implicit" or bool(pairs), f"{level} implicit needs a pair: give tuned and untuned")
        _require(kind != "explicit" or bool(values), f"{level} explicit needs a value model: give value")
    _require(
        sampling.temperature > 0 or search.rows_per_prompt == 1,
        f"temperature 0 is greedy: num_beams x num_successors = {search.rows_per_prompt} would repeat one "
        "hypothesis; set both to 1 or raise the temperature",
    )
    _require(
        sampling.num_samples == 1 or search.chunk_guidance == "none",
        f"num_samples {sampling.num_samples} draws independent responses; "
        "with chunk guidance use return_beams",
    )
