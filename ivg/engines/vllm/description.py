"""What the guided model consists of: the `ivg` entry of its config.json, or of vLLM's `hf_overrides`.

No vLLM here: a run's plans become a description before anything is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ivg.models.inspection import ModelInfo
from ivg.models.plan import GuidePlan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One model inside the guided model.

    Attributes:
        path: its folder or Hub name; of an adapter, the model under it.
        revision: Hub revision.
        adapter: folder of a LoRA adapter to be merged into it, or None.
        num_labels: outputs of its value head; 0 for a causal language model.
        trust_remote_code: run code shipped with the checkpoint.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    num_labels: int = 0
    trust_remote_code: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuideDescription:
    """One guide: tuned and untuned, or a value model.

    Attributes:
        members: two for a pair, one for a value.
        num_shared: ids below this are scored by guide and base.
        unguided: ids below it that get no guidance.
        beta: weight in token guidance where a request says nothing else; 0 if it does not guide tokens.
    """

    members: tuple[Member, ...]
    num_shared: int
    unguided: tuple[int, ...] = ()
    beta: float = 0.0

    @property
    def is_pair(self) -> bool:
        """Whether it is an implicit value function."""
        return len(self.members) == 2

    @property
    def is_scalar(self) -> bool:
        """Whether it values whole prefixes, and no single next tokens."""
        return self.members[-1].num_labels == 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The guided model.

    Attributes:
        base: the frozen model.
        guides: pairs and values.
        num_base: V, ids that the base scores. The id V itself is never sampled: its logit is the value.
    """

    base: Member
    guides: tuple[GuideDescription, ...]
    num_base: int

    @property
    def value_id(self) -> int:
        """The id whose logit is the weighted value of scalar heads."""
        return self.num_base

    def to_dict(self) -> dict[str, Any]:
        """Return what stands under `ivg` in config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Description:
        """Read what `to_dict` returned, from JSON too."""
        guides = tuple(
            GuideDescription(
                **{
                    **guide,
                    "members": tuple(Member(**member) for member in guide["members"]),
                    "unguided": tuple(guide["unguided"]),
                }
            )
            for guide in entry["guides"]
        )
        return cls(base=Member(**entry["base"]), guides=guides, num_base=entry["num_base"])


def describe(base: ModelInfo, plans: Sequence[GuidePlan]) -> Description:
    """Describe the guided model of a run whose guides all read ids."""
    return Description(
        base=_member(base), guides=tuple(_guide(plan) for plan in plans), num_base=base.num_outputs
    )


def _guide(plan: GuidePlan) -> GuideDescription:
    return GuideDescription(
        members=tuple(_member(info) for info in plan.models),
        num_shared=plan.fit.num_shared,
        unguided=plan.fit.unguided,
        beta=plan.beta,
    )


def _member(info: ModelInfo) -> Member:
    heads = {"causal": 0, "scalar": 1, "vocabulary": info.num_outputs}
    return Member(
        path=info.adapter_over or info.source.path,
        revision=None if info.adapter_over else info.source.revision,
        adapter=info.source.path if info.adapter_over else None,
        num_labels=heads[info.kind],
        trust_remote_code=info.source.trust_remote_code,
    )
