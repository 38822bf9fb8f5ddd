"""GGUF files (llama.cpp's: weights, tokenizer and chat template in one) become ordinary model folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ivg.errors import UserError, first_line, readable, require_module
from ivg.models.folders import require_gguf, require_new_folder
from ivg.models.loading import quiet, refuse_missing

GgufDtype = Literal["float32", "bfloat16", "float16"]


def convert_gguf(source: str, destination: str, *, dtype: GgufDtype = "float32") -> int:
    """Write a language model that lies in a GGUF file as a folder that `from_pretrained` reads.

    Quantized weights are unpacked: what the file lost when it was quantized stays lost.

    Args:
        source: the file, whole (not one of several parts).
        destination: folder to write; tokenizer and chat template come with it.
        dtype: of the weights written; `float32` holds every unpacked weight as it is.

    Returns:
        The number of parameters.

    Raises:
        UserError: no GGUF file, an architecture that transformers cannot read from one, or a destination
            that holds something.
    """
    if dtype not in get_args(GgufDtype):
        raise UserError(f"dtype is {dtype!r}; give one of {', '.join(get_args(GgufDtype))}")
    require_gguf(source)
    require_new_folder(destination)
    require_module("gguf", "gguf", f"{source}: reading a GGUF file")
    file, target = Path(source), Path(destination)
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with readable(f"{source}: cannot be read"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model, report = AutoModelForCausalLM.from_pretrained(
            **place,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    refuse_missing(report, source, ())
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if target.is_dir():
            target.rmdir()
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{destination}: cannot be written: {first_line(error)}") from error
    return int(model.num_parameters())
