"""What makes lockstep faster on a CPU and nowhere else: a guest, asked once when an engine is built.

Only `ivg.engines.lockstep.acceleration` imports this folder; delete it, and all works, slower.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from ivg.engines.lockstep.cpu import attention
from ivg.engines.lockstep.cpu.packing import pack_weights, use_fast_gelu
from ivg.engines.lockstep.cpu.shared_prefix import SharedPrefixCache, share_prefixes
from ivg.engines.lockstep.model_runner import ModelRunner


def accelerate(
    runners: Sequence[ModelRunner],
    modules: Sequence[nn.Module],
    *,
    packed_weights: bool,
    fast_gelu: bool,
    shared_prefixes: bool,
    common_columns: bool,
    compiled_attention: bool,
) -> None:
    """Make models on the CPU faster, in place; the switches are those of `acceleration.Accelerations`.

    Args:
        runners: whose rows grow alike, over modules that may be changed.
        modules: that may be changed.
    """
    for module in modules:
        if next(module.parameters()).device.type != "cpu":
            continue
        if packed_weights:
            pack_weights(module)
        if fast_gelu:
            use_fast_gelu(module)
    if shared_prefixes:
        new_cache = functools.partial(
            SharedPrefixCache, keeps_common=common_columns, is_compiled=compiled_attention
        )
        for runner in runners:
            if runner.device.type == "cpu":
                share_prefixes(runner, new_cache)


def has_compiled_loops() -> bool:
    """Tell whether the attention loop was compiled and runs on this CPU."""
    return attention.library() is not None
