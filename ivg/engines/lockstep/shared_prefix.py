"""Attention of rows that share a prefix: its keys and values are kept and read once for all of them.

On a CPU, decoding single tokens spends much of its time reading caches. The K successors of a beam continue
the same prefix, so their queries meet its keys together: in one compiled loop, or else in matrix products.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from ivg.engines.lockstep.cpu import attention
from ivg.errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Trunks:
    """The trunk that each row stands on; all rows of a trunk hold the same in its first columns.

    Attributes:
        ids: (R,) the row's trunk.
        common: (R,) how many columns, from the first on, the trunk has; the same number for all its rows.
    """

    ids: tuple[int, ...] = ()
    common: tuple[int, ...] = ()

    @classmethod
    def apart(cls, num_rows: int) -> Trunks:
        """Return trunks of which nothing is known but that rows are rows."""
        return cls(tuple(range(num_rows)), (0,) * num_rows)

    def in_common(self, row: int, other: int) -> int:
        """Return how many first columns two rows are known to share; 0 where one is not there yet."""
        if max(row, other) >= len(self.ids) or self.ids[row] != self.ids[other]:
            return 0
        return self.common[row]

    def select(self, rows: Sequence[int]) -> Trunks:
        """Return what holds for `rows`, in any order, repeats allowed."""
        return Trunks(tuple(self.ids[r] for r in rows), tuple(self.common[r] for r in rows))

    def continued(self, parents: Sequence[int], width: int) -> Trunks:
        """Return what holds for rows that continue `parents` of these rows.

        Args:
            parents: (R',) rows.
            width: columns that a parent has.
        """
        of_trunk: dict[int, set[int]] = {}
        for parent in parents:
            of_trunk.setdefault(self.ids[parent], set()).add(parent)
        # A trunk with one parent left goes up to where that parent ends.
        common = (width if len(of_trunk[self.ids[p]]) == 1 else self.common[p] for p in parents)
        return Trunks(tuple(self.ids[p] for p in parents), tuple(common))

    def shifted(self, columns: int) -> Trunks:
        """Return what holds once every row has that many more columns on the left, all alike; or fewer."""
        return Trunks(self.ids, tuple(max(0, common + columns) for common in self.common))

    def followed_by(self, others: Trunks) -> Trunks:
        """Return both, one below the other."""
        first = 1 + max(self.ids, default=-1)
        return Trunks((*self.ids, *(first + i for i in others.ids)), (*self.common, *others.common))


IMPLEMENTATION = "ivg_forked"  # registered with transformers below
MAX_PADDING = 2  # padded queries to a real one, above which sharing costs more than it saves


class Fork:
    """Which prefix each row continues.

    Args:
        parents: (R,) row of the prefix.
        trunks: of the P prefixes.
    """

    def __init__(self, parents: Tensor, trunks: Trunks) -> None:
        num_prefixes = len(trunks.ids)
        self.parents = parents
        self.trunks = trunks
        self.num_prefixes = num_prefixes
        self.num_reads = 0  # by attention layers, since it was last set to 0
        sizes = parents.bincount(minlength=num_prefixes)
        self._size = int(sizes.max())  # G, rows of the largest group
        order = parents.argsort(stable=True)
        starts = sizes.cumsum(0) - sizes
        rank = torch.empty_like(parents)
        rank[order] = torch.arange(len(parents), device=parents.device) - starts[parents[order]]
        self._places = parents * self._size + rank  # (R,) in (P x G)
        self._slots = parents.new_zeros(num_prefixes * self._size)  # (P x G,) rows; row 0 where there is none
        self._slots[self._places] = torch.arange(len(parents), device=parents.device)
        self._is_regular = torch.equal(
            self._places, torch.arange(num_prefixes * self._size, device=parents.device)
        )

    @functools.cached_property
    def order(self) -> attention.Order:
        """The rows as the compiled loop takes them."""
        return attention.order(self.parents.tolist(), self.trunks.ids, self.trunks.common)

    @staticmethod
    def pays(parents: Tensor, num_prefixes: int) -> bool:
        """Tell whether groups are even enough: each is padded to the size of the largest."""
        size = int(parents.bincount(minlength=num_prefixes).max())
        return size > 1 and num_prefixes * size <= MAX_PADDING * len(parents)

    def to_groups(self, rows: Tensor) -> Tensor:
        """Turn (R, heads, n, size) into (P, heads, G * n, size)."""
        grouped = rows if self._is_regular else rows[self._slots]
        _, heads, new, size = rows.shape
        grouped = grouped.reshape(self.num_prefixes, self._size, heads, new, size)
        return grouped.transpose(1, 2).reshape(self.num_prefixes, heads, self._size * new, size)

    def to_rows(self, groups: Tensor) -> Tensor:
        """Turn (P, heads, G * n, size) back into (R, heads, n, size)."""
        _, heads, _, size = groups.shape
        rows = groups.reshape(self.num_prefixes, heads, self._size, -1, size).transpose(1, 2)
        rows = rows.reshape(self.num_prefixes * self._size, heads, -1, size)
        return rows if self._is_regular else rows[self._places]


class Prefix(NamedTuple):
    """Keys and values (P, heads, columns, head size) before the rows' own, and who continues them."""

    keys: Tensor
    values: Tensor
    fork: Fork


class Behind(NamedTuple):
    """New keys and values (R, heads, n, head size) behind a prefix, to be the last of the rows' columns."""

    prefix: Prefix
    keys: Tensor
    values: Tensor


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to the columns of a shared prefix, then to the rows' own; the softmax is over both.

    The new tokens' keys and values are written here, where the loop that reads them has them at hand.

    Args:
        module: the attention layer.
        query: (R, heads, n, head size).
        key: (R, key heads, own columns, head size), the last ones to be written; its attribute `behind` is a
            `Behind`, which it loses if a model changes it after caching.
        value: like `key`.
        attention_mask: (R, 1, n, columns of prefix and own) of bool or to be added; None: everything is seen.
        scaling: of the scores; default 1 / sqrt(head size).

    Returns:
        (R, n, heads, head size), and no weights.

    Raises:
        TypeError: what cannot be done over a shared prefix.
    """
    behind: Behind | None = getattr(key, "behind", None)
    if behind is None:
        raise TypeError("attention to other keys than the cache returned cannot share prefixes")
    for unknown in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(unknown) is not None:
            raise TypeError(f"attention with {unknown} cannot share prefixes")
    prefix, new_key, new_value = behind
    prefix.fork.num_reads += 1
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    if attention.can_attend(query, key, value, attention_mask):
        states = (new_key, new_value), prefix[:2], (key, value)
        return attention.attend(query, *states, attention_mask, scaling, prefix.fork.order), None
    num_new = new_key.shape[2]
    key[:, :, -num_new:], value[:, :, -num_new:] = new_key, new_value
    return _by_products(query, key, value, attention_mask, scaling, prefix), None


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, prefix: Prefix
) -> Tensor:
    """Attend by matrix products in which all queries of a prefix meet it."""
    num_rows, num_heads, num_new, size = query.shape
    key_heads, width, fork = key.shape[1], prefix.keys.shape[2], prefix.fork
    queries = (query * scaling).reshape(num_rows, key_heads, -1, size)
    before = fork.to_rows(fork.to_groups(queries) @ prefix.keys.transpose(2, 3))
    scores = torch.cat([before, queries @ key.transpose(2, 3)], dim=-1)  # (R, key heads, group * n, columns)
    if attention_mask is not None:
        # One mask for all query heads that share a key head.
        by_head = scores.view(num_rows, key_heads, num_heads // key_heads, num_new, -1)
        mask = attention_mask.unsqueeze(2)
        lowest = torch.finfo(scores.dtype).min
        by_head = by_head.masked_fill(~mask, lowest) if mask.dtype == torch.bool else by_head + mask
        scores = by_head.view(scores.shape)
    elif num_new > 1:
        raise TypeError("attention over a shared prefix needs a mask for several new tokens")
    exact = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = scores.softmax(dim=-1, dtype=exact).to(value.dtype)
    output = fork.to_rows(fork.to_groups(weights[..., :width]) @ prefix.values) + weights[..., width:] @ value
    return output.view(num_rows, num_heads, num_new, size).transpose(1, 2).contiguous()


def may_share(model: PreTrainedModel) -> bool:
    """Tell whether a model's attention can be replaced by `attend`, which knows no soft caps."""
    config = getattr(model, "config", None)
    return (
        config is not None
        and config._attn_implementation == "sdpa"
        and getattr(model, "_supports_attention_backend", False)
        and getattr(config.get_text_config(), "attn_logit_softcapping", None) is None
    )


@contextlib.contextmanager
def sharing(model: PreTrainedModel, cache: Cache, name: str) -> Iterator[None]:
    """Let a model attend over the prefixes of forked rows while this is open.

    Args:
        model: whose attention is replaced.
        cache: the forked rows'.
        name: how messages call the model.

    Raises:
        UserError: a layer did not use the attention that was set, and so saw no prefix.
    """
    config, fork = model.config, cache.layers[0].prefix.fork
    before, fork.num_reads = config._attn_implementation, 0
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before
    if fork.num_reads != len(cache.layers):
        raise UserError(
            f"{name}: of its {len(cache.layers)} layers {fork.num_reads} use the attention that was set; "
            "load it with attn_implementation: eager"
        )


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
