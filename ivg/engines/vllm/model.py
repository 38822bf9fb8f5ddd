"""Base and guides as one vLLM model: the same ids and positions through all, one block table, one sampler.

`forward` returns their last hidden states side by side; `compute_logits` combines what their heads make of
them. To vLLM it is a causal language model, with one token id more than the base where a scalar head takes
part (`Description.value_id`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig
from vllm.compilation.backends import set_model_tag
from vllm.config import ModelConfig, VllmConfig, replace
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from ivg.decoding.log_ratio import as_float, log_probs, log_ratio
from ivg.decoding.shared_ids import SharedIds
from ivg.decoding.token_guidance import WeightedScores, guide_logits
from ivg.decoding.value_head import scalar_values, vocabulary_values
from ivg.engines.vllm.description import Description, GuideDescription, Member
from ivg.engines.vllm.row_settings import CONTEXT_NAME, BatchSettings
from ivg.models.inspection import HEAD_NAMES
from ivg.models.loading import load_weights

Weight = tuple[str, Tensor]


class MemberModel(nn.Module):
    """One of the models: vLLM's own class for it and, of a value model, the head.

    Args:
        vllm_config: the guided model's.
        member: what to build.
        name: its prefix in the guided model.
    """

    def __init__(self, vllm_config: VllmConfig, member: Member, name: str) -> None:
        super().__init__()
        own = replace(vllm_config, model_config=_model_config(vllm_config, member), quant_config=None)
        config = own.model_config.hf_text_config
        self.dtype = own.model_config.dtype
        self.hidden_size: int = config.hidden_size
        self.num_embeddings: int = config.vocab_size
        with set_default_torch_dtype(self.dtype), set_model_tag(name):
            self.model = initialize_model(vllm_config=own, prefix=name)
            self.head = nn.Linear(self.hidden_size, member.num_labels) if member.num_labels else None

    def value_head(self) -> nn.Linear:
        """Return the head of a value model."""
        assert self.head is not None
        return self.head

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Return the last hidden states (T, H); ids beyond the embedding are read as its last."""
        hidden: Tensor = self.model(input_ids.clamp(max=self.num_embeddings - 1), positions)
        return hidden

    def load_weights(self, weights: Iterable[Weight]) -> set[str]:
        """Load a checkpoint as it streams in; returns the parameters that it filled."""
        loaded = set[str]()

        def without_head() -> Iterator[Weight]:
            for name, tensor in weights:
                if self.head is not None and name.split(".")[0] in HEAD_NAMES:
                    parameter = name.split(".")[-1]
                    self.head.get_parameter(parameter).data.copy_(tensor)
                    loaded.add(f"head.{parameter}")
                else:
                    yield name, tensor

        loaded.update(f"model.{name}" for name in self.model.load_weights(without_head()))
        return loaded


def _model_config(vllm_config: VllmConfig, member: Member) -> ModelConfig:
    """Return a member's own configuration, as vLLM makes that of a draft model."""
    whole = vllm_config.model_config
    overrides = {}
    if member.num_labels:
        # The backbone is built as the language model that it was; tied to the embedding, the language
        # model's head takes no memory.
        config = _read_config(member)
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
        overrides = {"architectures": [architecture], "tie_word_embeddings": True}
    return ModelConfig(
        model=member.path,
        revision=member.revision,
        skip_tokenizer_init=True,
        trust_remote_code=member.trust_remote_code,
        dtype=whole.dtype,
        seed=whole.seed,
        enforce_eager=whole.enforce_eager,
        hf_overrides=overrides,
    )


def _read_config(member: Member) -> PretrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        member.path, revision=member.revision, trust_remote_code=member.trust_remote_code
    )


class Guide(nn.Module):
    """A pair or a value model."""

    def __init__(self, vllm_config: VllmConfig, guide: GuideDescription, number: int, num_base: int) -> None:
        super().__init__()
        names = [f"tuned{number}", f"untuned{number}"] if guide.is_pair else [f"value{number}"]
        self.description = guide
        self.shared = SharedIds(num_base, guide.num_shared, guide.unguided)
        self.members = nn.ModuleDict(
            {
                name: MemberModel(vllm_config, member, name)
                for name, member in zip(names, guide.members, strict=True)
            }
        )

    def named_members(self) -> list[tuple[str, MemberModel]]:
        """Return its models by name: tuned and untuned, or the value model."""
        return cast("list[tuple[str, MemberModel]]", list(self.members.items()))

    def token_scores(self, hidden: dict[str, Tensor]) -> Tensor | None:
        """Score every next token: (R, V) log-ratios or Q; None on a rank that has no logits.

        Args:
            hidden: (R, H) last hidden states by member.
        """
        n = self.shared.num_shared
        if self.description.is_pair:
            tuned, untuned = (m.model.compute_logits(hidden[name]) for name, m in self.named_members())
            if tuned is None:
                return None
            return self.shared.widen(log_ratio(tuned[..., :n], untuned[..., :n]))
        ((name, member),) = self.named_members()
        return self.shared.widen(vocabulary_values(hidden[name], member.value_head())[..., :n])

    def values(self, hidden: dict[str, Tensor]) -> Tensor:
        """Return a scalar head's (R,) values of the prefixes that end at the states."""
        ((name, member),) = self.named_members()
        return scalar_values(hidden[name], member.value_head())


class IvgForCausalLM(nn.Module):
    """The guided model. What it consists of stands in its config under `ivg`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config
        self.description = Description.from_dict(config.hf_config.ivg).located(config.model)
        self.base = MemberModel(vllm_config, self.description.base, "base")
        guides = [
            Guide(vllm_config, guide, number, self.description.num_base)
            for number, guide in enumerate(self.description.guides)
        ]
        self.guides = nn.ModuleList(guides)
        self.settings = BatchSettings([guide.beta for guide in self.description.guides])
        vllm_config.compilation_config.static_forward_context[CONTEXT_NAME] = self.settings
        self.secondary_weights = [
            DefaultModelLoader.Source(member.path, member.revision, prefix=f"{name}.")
            for name, member in self._guide_members()
            if member.adapter is None
        ]

    @staticmethod
    def get_model_state_cls() -> type:
        """Return what follows requests under model runner V2, which alone asks for it."""
        from ivg.engines.vllm.runner_v2 import GuidedModelState

        return GuidedModelState

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the base's (T, H) embeddings."""
        embeddings: Tensor = self.base.model.embed_input_ids(input_ids)
        return embeddings

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return all members' hidden states side by side: (T, sum of H)."""
        assert intermediate_tensors is None
        assert inputs_embeds is None
        return torch.cat([member(input_ids, positions) for member in self._members().values()], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return guided log-probs (R, `vocab_size`) or, for rows that want scores, chunk scores.

        Args:
            hidden_states: (R, sum of H) of the rows to sample.
        """
        hidden = self._split(hidden_states)
        rows = self.settings.take(len(hidden_states))
        guides = self._guides()
        betas = [[row.betas[i] for row in rows] for i in range(len(guides))]
        weights = [[row.chunk_weights[i] for row in rows if row.chunk_weights] for i in range(len(guides))]
        # Every rank asks all heads before it may stop: their parts are gathered from all ranks.
        logits = self.base.model.compute_logits(hidden["base"])
        token_scores = [
            guide.token_scores(hidden)
            if not guide.description.is_scalar and any(betas[i] + weights[i])
            else None
            for i, guide in enumerate(guides)
        ]
        if logits is None:
            return None
        places = torch.tensor(
            [i for i, row in enumerate(rows) if row.chunk_weights], device=logits.device
        ).long()
        num_base, size = self.description.num_base, self.description.vocab_size
        scores = logits.new_zeros(len(places), size, dtype=torch.float32)
        weighted: list[WeightedScores] = []
        for i, (guide, tokens) in enumerate(zip(guides, token_scores, strict=True)):
            if tokens is not None:
                weighted.append(WeightedScores(tokens.new_tensor(betas[i])[:, None], tokens))
                scores[:, :num_base] += scores.new_tensor(weights[i])[:, None] * tokens[places]
            elif any(weights[i]):
                values = guide.values(hidden)[places]
                scores[:, self.description.value_id] += scores.new_tensor(weights[i]) * values
        # Normalised, so that what vLLM reports as raw logits are log-probs.
        reported = log_probs(guide_logits(as_float(logits), weighted))
        if size > num_base:
            reported = nn.functional.pad(reported, (0, size - num_base), value=-torch.inf)  # (R, vocab_size)
        if len(places):
            self.settings.keep_for_sampling(places, reported[places])
            reported[places] = scores
        return reported

    def load_weights(self, weights: Iterable[Weight]) -> set[str]:
        """Load all members as their checkpoints stream in, one after another."""
        members = self._members()
        paths = {module: name for name, module in self.named_modules()}
        loaded = set[str]()
        guides = tuple(members)[1:]

        def owner(weight: Weight) -> str:
            first = weight[0].split(".")[0]
            return first if first in guides else "base"

        def load(name: str, stream: Iterable[Weight]) -> None:
            member = members[name]
            loaded.update(f"{paths[member]}.{parameter}" for parameter in member.load_weights(stream))

        for name, group in groupby(weights, key=owner):
            cut = 0 if name == "base" else len(name) + 1
            load(name, ((weight[cut:], tensor) for weight, tensor in group))
        for name, member in self._guide_members():
            if member.adapter is not None:
                load(name, _merged(member))
        return loaded

    def _guides(self) -> list[Guide]:
        return cast("list[Guide]", list(self.guides))

    def _members(self) -> dict[str, MemberModel]:
        """Return all members by name, the base first."""
        return {"base": self.base} | {
            name: member for guide in self._guides() for name, member in guide.named_members()
        }

    def _guide_members(self) -> Iterator[tuple[str, Member]]:
        for guide in self._guides():
            yield from zip(
                (name for name, _ in guide.named_members()), guide.description.members, strict=True
            )

    def _split(self, hidden_states: Tensor) -> dict[str, Tensor]:
        members = self._members()
        parts = torch.split(hidden_states, [member.hidden_size for member in members.values()], dim=-1)
        return {
            name: part.to(member.dtype) for (name, member), part in zip(members.items(), parts, strict=True)
        }


def _merged(member: Member) -> Iterable[Weight]:
    """Return the weights of a guide with its adapter merged; a guide is small, so it is merged in memory."""
    with torch.device("cpu"):
        merged = load_weights(
            "causal",
            member.path,
            f"guide {member.adapter}",
            adapter=member.adapter,
            revision=member.revision,
            trust_remote_code=member.trust_remote_code,
        )
    weights: dict[str, Tensor] = merged.state_dict()
    return weights.items()
