"""Which architectures can decode in a batch whose rows come, go and change places."""

from __future__ import annotations

import inspect

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    DynamicCache,
    PretrainedConfig,
)
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from ivg.errors import UserError

# What decoding keeps of a layer: keys and values, a state that each token changes, both, or nothing.
_KNOWN_LAYERS = {
    *("full_attention", "sliding_attention", "chunked_attention"),
    *("linear_attention", "conv"),
    *("hybrid", "hybrid_sliding"),
    *("moe", "mlp"),
}
# Their attention is told distances by the mask's columns, so they need no positions.
_WITHOUT_POSITIONS = {"bloom", "mpt"}


def has_states(config: PretrainedConfig) -> bool:
    """Tell whether some layers keep a state that each token changes, beside attention or instead of it.

    Such a state cannot be cut back to fewer tokens, and padding would enter it.
    """
    layers = DynamicCache(config=config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def num_attention_layers(config: PretrainedConfig) -> int:
    """Return how many layers keep keys and values of their own."""
    layers = DynamicCache(config=config).layers
    return sum(isinstance(layer, CacheLayerMixin) for layer in layers)


def check_rows_can_move(config: PretrainedConfig, name: str, *, is_causal: bool) -> None:
    """Refuse an architecture whose rows cannot be reordered and joined, before it is loaded.

    Args:
        config: the model's.
        name: how messages call it.
        is_causal: a causal LM; else a value model, whose backbone is called.

    Raises:
        UserError: layers of an unknown kind, no layer with attention, attention to later tokens, or positions
            that ignore a row's padding.
    """
    details = config.get_text_config().to_dict()
    other = sorted(set(details.get("layer_types") or ()) - _KNOWN_LAYERS)
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if is_causal else MODEL_MAPPING
    model_class = mapping.get(type(config), None)  # None where the checkpoint brings its own code
    is_stateful = model_class is not None and model_class._is_stateful
    if other or (is_stateful and not (has_states(config) and num_attention_layers(config))):
        found = f" ({', '.join(other)} layers)" if other else ""
        raise UserError(
            f"{name}: {config.model_type} remembers in a way of its own{found}, so its rows cannot be "
            "reordered; use a model with attention, alone or beside linear-attention or state-space layers"
        )
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not details.get("is_decoder")
    if is_encoder or details.get("use_bidirectional_attention") is True:
        raise UserError(
            f"{name}: {config.model_type} reads in both directions, so a prefix's outputs change as it "
            "grows; use a decoder-only model"
        )
    if model_class is None or config.model_type in _WITHOUT_POSITIONS:
        return
    if "position_ids" not in inspect.signature(model_class.forward).parameters:
        raise UserError(
            f"{name}: {config.model_type} takes no position_ids, so prompts of different lengths cannot "
            "share a batch; use a decoder-only model"
        )
