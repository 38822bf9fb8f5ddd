"""The models of a run: the base, and guides with their weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ivg.config.checks import require, require_choice, require_finite, require_not_negative
from ivg.errors import UserError

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
Quantization = Literal["4bit", "8bit"]
VocabMapping = Literal["refuse", "shared-strings"]


# What rendering decides itself, and arguments of transformers that are not the template's.
_NOT_FOR_TEMPLATES = (
    *("messages", "conversation", "tools", "documents", "chat_template"),
    *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
)


def check_chat_template_kwargs(kwargs: object, where: str = "") -> None:
    """Refuse what cannot be told to a chat template.

    Args:
        kwargs: what was given.
        where: opens the message.

    Raises:
        UserError: no mapping from names to values of JSON, or a name that is not the template's.
    """
    require(
        isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs),
        f"{where}chat_template_kwargs is {kwargs!r:.60}; give names with their values",
    )
    assert isinstance(kwargs, Mapping)
    for name, value in kwargs.items():
        require(
            name not in _NOT_FOR_TEMPLATES,
            f"{where}chat_template_kwargs {name!r} is no variable of a chat template's own; leave it out",
        )
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}chat_template_kwargs {name!r} is {value!r:.60}; give text, numbers, true, false, "
                "lists or mappings of them"
            ) from error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One Hugging Face model and how to load it.

    Attributes:
        path: folder or Hub name; for `tuned`, also the folder of a PEFT adapter over `untuned`.
        revision: Hub revision.
        dtype: weights' type; `auto` keeps the checkpoint's.
        device: where it runs (`cpu`, `cuda:0`); default: CUDA if there is one, else CPU.
        device_map: passed to transformers (`auto` spreads layers over devices); excludes `device`.
        quantization: `4bit` or `8bit` through bitsandbytes.
        attn_implementation: passed to transformers (`eager`, `sdpa`, `flash_attention_2`).
        trust_remote_code: run code shipped with the checkpoint.
        template: how a prompt becomes this model's text: `chat` (its own chat template), a format string
            with `{prompt}`, or unset: the chat template where the tokenizer has one, else the bare prompt.
        chat_template_kwargs: what its chat template is told beside the messages, such as
            `enable_thinking: false`.
    """

    path: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str | None = None
    device_map: str | None = None
    quantization: Quantization | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        require(isinstance(self.path, str), f"model path is {self.path!r}; give text")
        require(bool(self.path), "model path is empty: give a folder or a Hub name")
        for name in ("revision", "device", "device_map", "attn_implementation", "template"):
            value = getattr(self, name)
            require(value is None or isinstance(value, str), f"{self.path}: {name} is {value!r}; give text")
        require_choice(f"{self.path}: dtype", self.dtype, get_args(Dtype))
        if self.quantization is not None:
            require_choice(f"{self.path}: quantization", self.quantization, get_args(Quantization))
        require(
            self.device is None or self.device_map is None,
            f"{self.path}: device and device_map exclude each other; give one",
        )
        require(
            self.template is None or self.template == "chat" or "{prompt}" in self.template,
            f"{self.path}: template {self.template!r} has no '{{prompt}}'; "
            "give 'chat' or a format string that holds it",
        )
        check_chat_template_kwargs(self.chat_template_kwargs, f"{self.path}: ")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairConfig:
    """An implicit value function: log-ratio of `tuned` to `untuned`.

    Attributes:
        tuned: the model after preference tuning, or a LoRA adapter over `untuned`.
        untuned: the same model before it.
        beta: weight of the log-ratio in token guidance, >= 0; larger follows the pair more.
        chunk_weight: weight in the chunk score; unset: 1 where chunk guidance is implicit, else 0.
        average: divide the chunk score by the number of tokens.
        vocab_mapping: what to do where the pair's token-to-id map differs from the base's: `refuse`, or
            `shared-strings`: guide the tokens for whose bytes of text the pair has a token.
    """

    tuned: ModelConfig
    untuned: ModelConfig
    beta: float = 1.0
    chunk_weight: float | None = None
    average: bool = False
    vocab_mapping: VocabMapping = "refuse"

    def __post_init__(self) -> None:
        _require_models(tuned=self.tuned, untuned=self.untuned)
        require_not_negative("beta", self.beta)
        require_finite("chunk_weight", self.chunk_weight)
        require_choice("vocab_mapping", self.vocab_mapping, get_args(VocabMapping))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ValueConfig:
    """An explicit value function: a scalar head, a vocabulary head, a sequence classifier, or Python code.

    Attributes:
        model: the value model.
        function: instead of a model, the dotted name of a Python callable f(record, responses) -> scores
            (see `ivg.engines.chunk_guidance`); it ranks chunks and cannot guide tokens.
        chunk_weight: weight in the chunk score; unset: 1 where chunk guidance is explicit, else 0.
        beta: weight in explicit token guidance (vocabulary heads only), >= 0.
        weight: the earlier name of `chunk_weight`, still read.
    """

    model: ModelConfig | None = None
    function: str | None = None
    chunk_weight: float | None = None
    beta: float = 1.0
    weight: dataclasses.InitVar[float | None] = None

    def __post_init__(self, weight: float | None) -> None:
        require(
            (self.model is None) != (self.function is None),
            "a value is a model or a function; give one of model (or path) and function",
        )
        if self.model is not None:
            _require_models(model=self.model)
        else:
            require(
                isinstance(self.function, str) and bool(self.function),
                f"value function is {self.function!r}; give a dotted name, package.module.function",
            )
        require(
            weight is None or self.chunk_weight is None,
            "chunk_weight and weight are two names of one thing; give chunk_weight",
        )
        if weight is not None:
            object.__setattr__(self, "chunk_weight", weight)
        require_not_negative("beta", self.beta)
        require_finite("chunk_weight", self.chunk_weight)


def _require_models(**models: object) -> None:
    for name, model in models.items():
        require(isinstance(model, ModelConfig), f"{name} is {model!r:.60}; give a ModelConfig(path=...)")
