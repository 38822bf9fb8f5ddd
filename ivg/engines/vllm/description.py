"""What the guided model consists of: the `ivg` entry of its config.json, or of vLLM's `hf_overrides`.

No vLLM here: a run's plans become a description before anything is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dacite

from ivg.config import ModelConfig
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
        num_base: V, ids that the base scores.
        exported_by: of an exported folder, the ivg that wrote it, such as `ivg==0.1.0`; its members' paths
            are relative to it.
    """

    base: Member
    guides: tuple[GuideDescription, ...]
    num_base: int
    exported_by: str | None = None

    @property
    def value_id(self) -> int:
        """The id whose logit is the weighted value of scalar heads; it is never sampled."""
        return self.num_base

    @property
    def vocab_size(self) -> int:
        """Logits of the guided model: of the base's ids and, where a scalar head takes part, the value id."""
        return self.num_base + any(guide.is_scalar for guide in self.guides)

    def to_dict(self) -> dict[str, Any]:
        """Return what stands under `ivg` in config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Description:
        """Read what `to_dict` returned, from JSON too."""
        return dacite.from_dict(cls, dict(entry), dacite.Config(cast=[tuple]))

    def located(self, folder: str) -> Description:
        """Return it with paths that can be opened from anywhere.

        Args:
            folder: the guided model's own.

        Raises:
            ValueError: it was exported by another version of ivg.
        """
        if self.exported_by is None:
            return self
        if self.exported_by != this_plugin():
            raise ValueError(
                f"{folder} was exported by {self.exported_by}, and this is {this_plugin()}; export it again"
            )
        return self.with_paths(lambda path: str(Path(folder) / path))

    def with_paths(self, changed: Callable[[str], str]) -> Description:
        """Return it with the paths of all members and adapters changed."""

        def change(member: Member) -> Member:
            adapter = None if member.adapter is None else changed(member.adapter)
            return dataclasses.replace(member, path=changed(member.path), adapter=adapter)

        guides = tuple(
            dataclasses.replace(guide, members=tuple(map(change, guide.members))) for guide in self.guides
        )
        return dataclasses.replace(self, base=change(self.base), guides=guides)


def this_plugin() -> str:
    """Return how an exported folder names this version of ivg."""
    return f"ivg=={version('ivg')}"


def loading_args(source: ModelConfig) -> dict[str, Any]:
    """Return what vLLM is told of any model: where it lies, and what ivg does itself."""
    return {
        "model": source.path,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
        "dtype": source.dtype,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


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
