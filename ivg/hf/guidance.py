"""The guides of a base that is in memory already."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ivg.config import (
    ModelConfig,
    PairConfig,
    SamplingConfig,
    SearchConfig,
    ValueConfig,
    check_guidance,
    check_rows,
)
from ivg.decoding.streaming import NewText
from ivg.errors import UserError
from ivg.models.architectures import check_rows_can_move
from ivg.models.inspection import ModelInfo
from ivg.models.loading import LoadedModel, Models, load_inspected
from ivg.models.plan import inspect_guides, plan_guides, reading_models
from ivg.models.prompts import Record, as_rows
from ivg.models.vocab import stop_token_ids
from ivg.run.tasks import room_for


class Guidance:
    """A base that is in memory already, and its guides.

    Args:
        model: the base.
        tokenizer: its own.
        pairs: implicit value functions, loaded here.
        values: explicit value functions, loaded here.
        search: guidance and beam search.
        stop: string or strings that end a response.
        seed: with the prompt's ids, the row and the position, decides every draw.
        max_batch_rows: rows (prompts x W x K) decoded side by side.
        on_text: gets each response's text as it becomes certain.

    Raises:
        UserError: guidance that the models cannot give, before any weights are loaded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pairs: Sequence[PairConfig] = (),
        values: Sequence[ValueConfig] = (),
        search: SearchConfig | None = None,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        max_batch_rows: int = 64,
        on_text: Callable[[NewText], None] | None = None,
    ) -> None:
        self.search = search or SearchConfig()
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.seed = seed
        self.max_batch_rows = max_batch_rows
        self.on_text = on_text
        check_rows(self.search, max_batch_rows)
        check_guidance(self.search, SamplingConfig(stop=self.stop), pairs, values)
        stop_token_ids(tokenizer, self.stop)
        check_rows_can_move(model.config, "base", is_causal=True)
        base = ModelInfo(
            name="base",
            source=ModelConfig(path=model.name_or_path or type(model).__name__),
            config=model.config,
            tokenizer=tokenizer,
            template="{prompt}",
            kind="causal",
            generation=model.generation_config,
        )
        infos = inspect_guides(base, pairs, values)
        self.configs = (tuple(pairs), tuple(values))
        self.plans = plan_guides(infos, self.search)
        self.models: Models = load_inspected(infos, LoadedModel(base, model))

    def with_generation(self, config: GenerationConfig) -> Models:
        """Return the models, the base with the EOS ids of this call."""
        base = dataclasses.replace(self.models.infos.base, generation=config)
        infos = dataclasses.replace(self.models.infos, base=base)
        return dataclasses.replace(self.models, infos=infos, base=LoadedModel(base, self.models.base.module))

    def prompt_ids(
        self, input_ids: Tensor, attention_mask: Tensor | None, prompts: Sequence[str | Record] | None
    ) -> list[dict[str, tuple[int, ...]]]:
        """Return each prompt in every model's ids, by model name.

        Args:
            input_ids: (P, T), padded on the left.
            attention_mask: (P, T), or None where nothing is padding.
            prompts: what was encoded, for guides with a template or vocabulary of their own; without it, the
                guides read the base's ids.

        Raises:
            UserError: such a guide, but no prompts; or another number of them.
        """
        if prompts is None:
            self._refuse_own_templates()
        elif len(prompts) != len(input_ids):
            raise UserError(
                f"{len(prompts)} prompts for {len(input_ids)} rows of input_ids; give one for each"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        base_ids = [tuple(ids[m.bool()].tolist()) for ids, m in zip(input_ids, mask, strict=True)]
        base, *guides = reading_models(self.models.infos.base, self.plans)
        if prompts is None:
            return [dict.fromkeys((info.name for info in (base, *guides)), ids) for ids in base_ids]
        return [
            {base.name: ids} | {info.name: tuple(info.renderer().prompt_ids(row)) for info in guides}
            for ids, row in zip(base_ids, as_rows(prompts), strict=True)
        ]

    def check_room(self, prompt_ids: Sequence[Mapping[str, Sequence[int]]], max_new_tokens: int) -> None:
        """Refuse prompts that leave a model too little of its context.

        Raises:
            UserError: naming the model and the first such prompt, or one without tokens.
        """
        infos = reading_models(self.models.infos.base, self.plans)
        remedy = "shorten it or lower max_new_tokens"
        for number, prompt in enumerate(prompt_ids, 1):
            room_for(infos, prompt, max_new_tokens, what=f"prompt {number}", remedy=remedy)

    def _refuse_own_templates(self) -> None:
        for value in self.models.infos.functions:
            raise UserError(
                f"value function {value.function}: it reads the prompts themselves; "
                "give prompts=[...] beside guidance"
            )
        for plan in self.plans:
            for info in plan.models:
                if plan.fit.route != "ids" or info.source.template is not None:
                    raise UserError(
                        f"{info.name}: has a template or vocabulary of its own, so it needs the prompts "
                        "themselves; give prompts=[...] beside guidance"
                    )
