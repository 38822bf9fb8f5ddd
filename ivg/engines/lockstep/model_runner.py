"""One model over the rows of the batch: prefill prompts, feed tokens, keep the cache aligned."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ivg.engines.lockstep.kv_cache import RowCache, Source
from ivg.engines.lockstep.shared_prefix import may_share, sharing
from ivg.errors import UserError
from ivg.models.loading import WITH_ADAPTER, WITHOUT_ADAPTER, LoadedModel, LoadedPair

logger = logging.getLogger(__name__)
_SAME = 0.1  # of the outputs' standard deviation; bfloat16 differs by some hundredths


@dataclasses.dataclass(slots=True)
class BatchState:
    """What a model remembers of its rows; with branches, a row's branches stand one below the other.

    Attributes:
        cache: keys and values, right-aligned.
        mask: (R, T) which cached columns are real tokens.
        lengths: (R,) real tokens per row, hence each row's next position.
        last: (R, V) logits or (R, H) hidden states at each row's last fed token.
        finite: (R,) whether every output so far was a number (minus infinity is allowed in logits).
    """

    cache: RowCache
    mask: Tensor
    lengths: Tensor
    last: Tensor
    finite: Tensor


class Part(NamedTuple):
    """Rows (R',) to take from a state."""

    state: BatchState
    rows: Tensor


class ModelRunner:
    """A model fed side by side with the others; all tensors that a reorder touches are in its `BatchState`.

    Args:
        module: the network called: a causal LM, or the backbone of a value model.
        name: how messages call it.
        has_logits: whether `module` returns logits (causal LM), or hidden states (backbone).
        num_ids: size of the input embedding; a larger id from the base is fed as 0 (it carries no guidance).
        max_length: context length in tokens, or None where the architecture sets none.
        branches: for a LoRA pair, the adapters under which each row runs; rows then come once per branch.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        *,
        name: str,
        has_logits: bool,
        num_ids: int,
        max_length: int | None,
        branches: tuple[str, ...] = (),
    ) -> None:
        self.module = module
        self.name = name
        self.has_logits = has_logits
        self.num_ids = num_ids
        self.max_length = max_length
        self.branches = branches
        self.tokens_fed = 0
        self.device = next(module.parameters()).device

    @property
    def text_config(self) -> dict[str, Any]:
        """The architecture's configuration."""
        return dict(self.module.config.get_text_config().to_dict())

    @functools.cached_property
    def has_windows(self) -> bool:
        """Whether some layers do not attend to everything before."""
        config = self.text_config
        return bool(
            set(config.get("layer_types") or ()) - {"full_attention"}
            or config.get("sliding_window")
            or any(getattr(layer, "sliding_window", None) for layer in self.module.modules())
        )

    @functools.cached_property
    def can_fork(self) -> bool:
        """Whether rows can share prefixes: on a CPU, with models whose forked rows give what whole ones give.

        On a GPU other kernels are faster than reading the prefix once; not measured there.
        """
        if self.device.type != "cpu" or not may_share(self.module):
            return False
        self.can_fork = True  # while it is tried
        num_fed = self.tokens_fed
        try:
            return self._forks_exactly()
        except (RuntimeError, TypeError, ValueError, UserError) as error:  # whatever a model does of its own
            logger.info("%s: rows do not share prefixes: %s", self.name, error)
            return False
        finally:
            self.tokens_fed = num_fed

    @torch.inference_mode()
    def _forks_exactly(self) -> bool:
        """Compare two rows that continue one with that one alone."""
        whole = self.prefill([(0, 1, 2, 3)]).last.double()
        state = self.prefill([(0, 1)])
        self.fork(state, torch.tensor([0, 0]))
        for token in (2, 3):
            self.feed(state, torch.tensor([[token], [token]]))
        error = (state.last.double() - whole.repeat(2, 1)).abs().max()
        return bool(error < _SAME * whole.std())

    @property
    def num_branches(self) -> int:
        """How many times each row runs through the module."""
        return max(1, len(self.branches))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> BatchState:
        """Run prompts of any length, one row each.

        Args:
            prompts: token ids, none empty.

        Returns:
            A state whose `last` is the output at each prompt's end.

        Raises:
            UserError: the architecture keeps something else than attention keys and values.
        """
        width = max(len(ids) for ids in prompts)
        padded = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=self.device)
        lengths = self.per_branch(torch.tensor([len(ids) for ids in prompts], device=self.device))
        offsets = torch.arange(width, device=self.device) - (width - lengths[:, None])  # (R, T)
        state = BatchState(RowCache(), offsets >= 0, lengths, padded, padded)
        output = self.forward(
            state.cache, self.per_branch(padded), state.mask, offsets.clamp(min=0), num_outputs=1
        )
        state.last = output[:, -1]
        state.finite = self.is_finite(output)
        if {layer.get_seq_length() for layer in state.cache.layers} != {width}:
            raise UserError(
                f"{self.name}: its architecture does not keep attention keys and values in every layer, "
                "so its rows cannot be reordered; use a model with full or sliding-window attention"
            )
        self.tokens_fed += sum(map(len, prompts)) * self.num_branches
        return state

    def feed(self, state: BatchState, ids: Tensor) -> Tensor:
        """Append tokens to every row.

        Args:
            state: advanced in place; its `last` becomes the output at the last token.
            ids: (R, n) token ids, one row for all its branches.

        Returns:
            (R, n, V) logits or (R, n, H) hidden states, R counting branches.
        """
        ids = self.per_branch(ids.to(self.device))
        num_new = ids.shape[1]
        positions = state.lengths[:, None] + torch.arange(num_new, device=self.device)  # (R, n)
        if self.max_length is not None:
            # Only tokens past a row's own limit get here, and the decoder drops them.
            positions = positions.clamp(max=self.max_length - 1)
        state.mask = torch.cat([state.mask, state.mask.new_ones(len(ids), num_new)], dim=1)
        state.lengths = state.lengths + num_new
        # All that one token may see, and so no mask for transformers to work out.
        is_whole = num_new == 1 and self.can_fork and not self.has_windows
        mask = state.mask[:, None, None] if is_whole else state.mask
        output = self.forward(state.cache, ids, mask, positions, num_new)
        state.last = output[:, -1]
        state.finite = state.finite & self.is_finite(output)
        self.tokens_fed += ids.numel()
        return output

    def select(self, state: BatchState, rows: Tensor) -> None:
        """Reorder, repeat or drop rows (R',) in place; forked ones stay so while that pays."""
        if state.cache.is_forked and not state.cache.pays_to_stay_forked(self.branch_rows(rows)):
            self.merge(state, rows)
            return
        rows = self.branch_rows(rows)
        state.cache.select(rows)
        self._take(state, rows)

    def fork(self, state: BatchState, rows: Tensor) -> None:
        """Let rows (R',) continue these rows, repeats allowed, without copying what is cached."""
        rows = self.branch_rows(rows)
        state.cache.fork(rows)
        self._take(state, rows)

    def merge(self, state: BatchState, rows: Tensor) -> None:
        """Reorder or drop forked rows (R',) in place, and make each whole, without common padding."""
        rows = self.branch_rows(rows)
        drop = state.mask.shape[1] - int(state.lengths[rows].max())
        state.cache.merge(rows, drop)
        state.mask = state.mask[:, drop:]
        self._take(state, rows)

    def _take(self, state: BatchState, rows: Tensor) -> None:
        state.mask, state.lengths = state.mask[rows], state.lengths[rows]
        state.last, state.finite = state.last[rows], state.finite[rows]

    def rebuild(self, parts: Sequence[Part]) -> BatchState:
        """Put the parts' rows into one state, without the columns that are padding in all of them.

        The first part's state gives its cache to the new one and cannot be used any more.
        """
        rows = [self.branch_rows(part.rows) for part in parts]
        lengths = torch.cat([part.state.lengths[r] for part, r in zip(parts, rows, strict=True)])
        width = int(lengths.max())
        sources = [
            Source(part.state.cache, r, max(0, part.state.cache.width - width))
            for part, r in zip(parts, rows, strict=True)
        ]
        cache = parts[0].state.cache
        cache.rebuild(sources)
        mask = torch.arange(width, device=self.device) >= width - lengths[:, None]
        last = torch.cat([part.state.last[r] for part, r in zip(parts, rows, strict=True)])
        finite = torch.cat([part.state.finite[r] for part, r in zip(parts, rows, strict=True)])
        return BatchState(cache, mask, lengths, last, finite)

    def forward(self, cache: Cache, ids: Tensor, mask: Tensor, positions: Tensor, num_outputs: int) -> Tensor:
        """Run the module once.

        Args:
            cache: keys and values of the columns before; the new ones are appended.
            ids: (R, n), R counting branches.
            mask: (R, T) real columns, the new ones included; or (R, 1, n, T) of bool, or to be added to
                attention scores.
            positions: (R, n).
            num_outputs: how many of the last outputs are wanted.

        Returns:
            (R, num_outputs, V) logits or (R, num_outputs, H) hidden states.
        """
        kwargs: dict[str, object] = {"logits_to_keep": num_outputs} if self.has_logits else {}
        if self.branches:
            kwargs["adapter_names"] = list(self.branches) * (len(ids) // len(self.branches))
        is_forked = isinstance(cache, RowCache) and cache.is_forked
        with sharing(self.module, cache, self.name) if is_forked else contextlib.nullcontext():
            output = self.module(
                input_ids=ids.where(ids < self.num_ids, 0),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **kwargs,
            )
        kept: Tensor = output.logits if self.has_logits else output.last_hidden_state[:, -num_outputs:]
        return kept

    def is_finite(self, output: Tensor, is_real: Tensor | None = None) -> Tensor:
        """Reduce (R, n, ·) outputs to (R,) by a quantity that is NaN or infinite where a number is.

        Args:
            output: logits or hidden states.
            is_real: (R, n) which of them count; default all.
        """
        extreme = (output.amax(dim=-1) if self.has_logits else output.sum(dim=-1)).isfinite()
        return (extreme if is_real is None else extreme | ~is_real).all(dim=-1)

    def per_branch(self, rows: Tensor) -> Tensor:
        """Repeat each row for its branches: (R', ...) to (R' x branches, ...)."""
        return rows.repeat_interleave(self.num_branches, dim=0) if self.branches else rows

    def branch_rows(self, rows: Tensor) -> Tensor:
        """Return where the rows' branches stand: (R',) to (R' x branches,)."""
        rows = rows.to(self.device)
        if not self.branches:
            return rows
        branches = torch.arange(self.num_branches, device=self.device)
        return (rows[:, None] * self.num_branches + branches).flatten()


def runner_of(model: LoadedModel, branches: tuple[str, ...] = ()) -> ModelRunner:
    """Return a fresh runner over a model: logits of a causal LM, hidden states of a value model."""
    is_causal = model.info.kind == "causal"
    return ModelRunner(
        model.module if is_causal else model.module.get_submodule(model.module.base_model_prefix),
        name=model.info.name,
        has_logits=is_causal,
        num_ids=model.info.num_embeddings,
        max_length=model.info.max_length,
        branches=branches,
    )


def pair_runners(pair: LoadedPair) -> tuple[ModelRunner, ...]:
    """Return fresh runners: tuned and untuned, or one with both as branches."""
    if pair.is_shared:
        return (runner_of(pair.tuned, (WITH_ADAPTER, WITHOUT_ADAPTER)),)
    return (runner_of(pair.tuned), runner_of(pair.untuned))


def separate_runners(pair: LoadedPair) -> tuple[ModelRunner, ModelRunner]:
    """Return fresh runners, always one for each, for rows whose branches differ in length."""
    if pair.is_shared:
        return (runner_of(pair.tuned, (WITH_ADAPTER,)), runner_of(pair.untuned, (WITHOUT_ADAPTER,)))
    return (runner_of(pair.tuned), runner_of(pair.untuned))
