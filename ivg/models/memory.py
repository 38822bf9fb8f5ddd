"""How much memory a model will need, from its configuration alone."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from ivg.errors import UserError, readable
from ivg.models.architectures import num_attention_layers
from ivg.models.inspection import Kind, ModelInfo
from ivg.models.loading import CLASSES, MAX_LAYERS, UNQUANTIZED

_QUANTIZED_BYTES = {"4bit": 0.5, "8bit": 1.0}


@dataclasses.dataclass(frozen=True, slots=True)
class Needs:
    """What one model needs.

    Attributes:
        num_parameters: of the whole model, tied weights once.
        weight_bytes: in its dtype or quantization.
        cache_bytes_per_token: keys and values of one token in one row; 0 where nothing is cached.
        dtype: in which it computes.
        matrix_bytes: of the weights that tokens are multiplied by, an output layer tied to the embedding
            included.
        file_bytes: of its checkpoint, which a CPU maps into memory to read it.
        is_cast: whether it computes in another dtype than its checkpoint has.
    """

    num_parameters: int
    weight_bytes: int
    cache_bytes_per_token: int
    dtype: torch.dtype
    matrix_bytes: int
    file_bytes: int
    is_cast: bool

    def cpu_bytes(self, *, is_packed: bool) -> int:
        """Return what its weights take on a CPU once they are loaded.

        Weights that stay in the checkpoint's dtype are the file itself, mapped into memory.

        Args:
            is_packed: weights that tokens are multiplied by are brought into the CPU's order, as a copy.
        """
        if self.is_cast:  # the copies take the place of what they were made of, but for a tied layer's
            return max(self.weight_bytes, self.matrix_bytes) if is_packed else self.weight_bytes
        return self.file_bytes + (self.matrix_bytes if is_packed else 0)

    @property
    def loading_bytes(self) -> int:
        """What loading takes beside that on a CPU: the mapping of a file whose weights are cast."""
        return self.file_bytes if self.is_cast else 0


def estimate(info: ModelInfo) -> Needs:
    """Estimate a model's needs on the meta device; nothing is loaded or allocated."""
    with readable(f"{info.name}: its size cannot be told"), torch.device("meta"):
        dtype = _dtype(info)
        model = CLASSES[info.kind].from_config(info.config, trust_remote_code=info.source.trust_remote_code)
    num_parameters = sum(p.numel() for p in model.parameters())
    quantized = _num_quantized(model) if info.source.quantization is not None else 0
    per_quantized = _QUANTIZED_BYTES.get(info.source.quantization or "", 0.0)
    weight_bytes = int((num_parameters - quantized) * dtype.itemsize + quantized * per_quantized)
    saved = _saved_dtype(info)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
    return Needs(
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        cache_bytes_per_token=_cache_bytes(info.config, info.kind, dtype),
        dtype=dtype,
        matrix_bytes=matrices * dtype.itemsize,
        file_bytes=_file_bytes(info) or num_parameters * saved.itemsize,
        is_cast=dtype != saved,
    )


def check_it_fits(infos: Sequence[ModelInfo]) -> None:
    """Refuse models of which this machine could not hold the least that their configurations ask for.

    It counts token embeddings and, in each layer, what reads and writes the hidden state in attention;
    whatever else there is comes on top, so what is refused could not have been loaded. Models spread over
    devices may be offloaded to a disk, and are not counted.

    Raises:
        UserError: naming the largest model.
    """
    sizes = [(_least_bytes(info), info.name) for info in infos if info.source.device_map is None]
    total, here = sum(size for size, _ in sizes), _memory_bytes()
    if total > here:
        size, name = max(sizes)
        raise UserError(
            f"{name}: its configuration asks for at least {size / 2**30:,.0f} GiB of weights, and this "
            f"machine has {here / 2**30:,.0f} GiB of memory in all; use a smaller dtype, quantization or "
            "device_map auto, or mend its config.json"
        )


def _least_bytes(info: ModelInfo) -> int:
    is_packed = info.config.to_dict().get("quantization_config") is not None  # 4 bits and more
    quantization = "4bit" if is_packed else info.source.quantization or ""
    per_weight = _QUANTIZED_BYTES.get(quantization, float(_dtype(info).itemsize))
    return int(_least_parameters(info.config, info.num_embeddings) * per_weight)


def _least_parameters(config: PretrainedConfig, num_embeddings: int) -> int:
    """Count embeddings and, in each layer, what reads and writes the hidden state in attention."""
    fields = config.get_text_config()
    layers, width = (_count(fields, name) for name in ("num_hidden_layers", "hidden_size"))
    heads, head_size = _count(fields, "num_attention_heads"), _count(fields, "head_dim")
    inner = heads * head_size or width
    if config.model_type == "albert":  # one layer for all, and narrow embeddings
        layers, width = 1, _count(fields, "embedding_size")
    positions = int(fields.to_dict().get("n_positions") or 0)  # learnt, where they are called so
    return (num_embeddings + positions) * width + layers * 2 * width * inner


def _count(config: PretrainedConfig, name: str) -> int:
    """Return a size that a configuration gives, under whatever name its architecture has for it; else 0."""
    value = config.to_dict().get(config.attribute_map.get(name, name))
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _memory_bytes() -> int:
    """Return the memory of this machine: its own and that of its GPUs."""
    gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + sum(gpus)


def refuse_absurd_size(config: PretrainedConfig, name: str) -> None:
    """Refuse a shape to train or convert that no memory here can hold, before anything is allocated.

    Four bytes a weight, counted as `check_it_fits` does: a model that is refused is too large beyond doubt.

    Raises:
        UserError: with what it would need.
    """
    with readable(f"{name}: its size cannot be told"):
        fields = config.get_text_config()
        layers, width, vocab = map(int, (fields.num_hidden_layers, fields.hidden_size, fields.vocab_size))
        needed = 4 * _least_parameters(config, vocab)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if layers > MAX_LAYERS:
        raise UserError(f"{name}: {layers} layers; give at most {MAX_LAYERS}")
    if needed > memory:
        raise UserError(
            f"{name}: a model of {layers} layers of width {width} and {vocab} tokens needs more than "
            f"{needed / 2**30:.3g} GiB, and this machine has {memory / 2**30:.3g}; give a smaller shape"
        )


def adapter_bytes(info: ModelInfo) -> int:
    """Return the size of a PEFT adapter's weights on disk; 0 where they are not local."""
    return sum(file.stat().st_size for file in Path(info.source.path).glob("adapter_model.*"))


def _file_bytes(info: ModelInfo) -> int:
    """Return the size of a local checkpoint's weights; 0 where they are not local."""
    folder = Path(info.adapter_over or info.source.path)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def process_bytes() -> int:
    """Return the memory that this process has in use: libraries, mostly; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0


def _dtype(info: ModelInfo) -> torch.dtype:
    return _saved_dtype(info) if info.source.dtype == "auto" else _named(info.source.dtype)


def _saved_dtype(info: ModelInfo) -> torch.dtype:
    """Return the dtype of a checkpoint's weights."""
    config = Path(info.source.path) / "config.json"
    if config.is_file():
        saved = json.loads(config.read_text())
        return _named(saved.get("dtype") or saved.get("torch_dtype") or "float32")
    return info.config.dtype or torch.float32


def _named(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _num_quantized(model: nn.Module) -> int:
    """Count the weights of linear layers that bitsandbytes replaces."""
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] not in UNQUANTIZED
    )


def _cache_bytes(config: PretrainedConfig, kind: Kind, dtype: torch.dtype) -> int:
    text = config.get_text_config()
    fields = text.to_dict()

    def field(name: str) -> int | None:
        value = fields.get(text.attribute_map.get(name, name))
        return int(value) if isinstance(value, int) else None

    heads, width = field("num_attention_heads"), field("hidden_size")
    if heads is None or width is None or (kind == "classifier" and not fields.get("use_cache")):
        return 0
    key_heads = field("num_key_value_heads") or heads
    head_size = field("head_dim") or width // heads
    return 2 * num_attention_layers(config) * key_heads * head_size * dtype.itemsize
