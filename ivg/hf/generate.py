"""`model.generate(custom_generate=ivg.custom_generate, guidance=...)`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ivg.config import SamplingConfig, check_guidance
from ivg.decoding.engine import in_order
from ivg.decoding.sequences import Finished, Task
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.errors import UserError
from ivg.hf.guidance import Guidance
from ivg.models.prompts import Record, as_rows

_OURS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MaxLengthCriteria, EosTokenCriteria)


def custom_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    guidance: Guidance | None = None,
    prompts: Sequence[str | Record] | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decode with guidance inside `model.generate(**inputs, custom_generate=ivg.custom_generate, ...)`.

    Sampling settings (do_sample, temperature, top_k, top_p, length, EOS) are those of `generate`.

    Args:
        model: the base.
        input_ids: (P, T), padded on the left.
        logits_processor: only what temperature, top_k and top_p make.
        stopping_criteria: only length and EOS.
        generation_config: the prepared one.
        guidance: the guides and the search.
        prompts: what was encoded, for guides with a template or vocabulary of their own.
        model_kwargs: the attention mask; the rest is not needed.

    Returns:
        (P, T + longest response) ids, padded on the right; in `return_dict_in_generate`, with the key
        `sequences`.

    Raises:
        UserError: no guidance, several sequences per prompt, or processors that would be passed over.
    """
    if guidance is None or guidance.models.base.module is not model:
        raise UserError(
            "custom_generate needs guidance=ivg.hf.Guidance(model, tokenizer, ...) for this very model"
        )
    _refuse_others(generation_config, logits_processor, stopping_criteria)
    room = int(generation_config.max_length) - input_ids.shape[1]
    sampling = _sampling(generation_config, guidance, room)
    check_guidance(guidance.search, sampling, *guidance.configs)
    models = guidance.with_generation(generation_config)
    engine = LockstepEngine(
        models,
        guidance.search,
        sampling,
        max_batch_rows=guidance.max_batch_rows,
        on_text=guidance.on_text,
    )
    prompt_ids = guidance.prompt_ids(input_ids, model_kwargs.get("attention_mask"), prompts)
    guidance.check_room(prompt_ids, room)
    base = models.infos.base.name
    rows = [{}] * len(prompt_ids) if prompts is None else as_rows(prompts)
    tasks = [
        Task(index=i, prompt_id=name, prompt_ids=ids, max_tokens=room, record=record)
        for i, (name, ids, record) in enumerate(
            zip(_names(ids[base] for ids in prompt_ids), prompt_ids, rows, strict=True)
        )
    ]
    found = in_order(tasks, engine.run(tasks))
    sequences = _appended(input_ids, found, padding=_given(generation_config.pad_token_id, 0))
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)
    return sequences


def _sampling(config: GenerationConfig, guidance: Guidance, room: int) -> SamplingConfig:
    is_sampled = bool(config.do_sample)
    return SamplingConfig(
        max_new_tokens=room,
        temperature=_given(config.temperature, 1.0) if is_sampled else 0.0,
        top_k=int(_given(config.top_k, 0)) if is_sampled else 0,
        top_p=_given(config.top_p, 1.0) if is_sampled else 1.0,
        stop=guidance.stop,
        seed=guidance.seed,
    )


def _appended(input_ids: Tensor, found: Iterable[Finished], *, padding: int) -> Tensor:
    """Put the best responses behind their prompts (P, T), padded on the right: (P, T + longest)."""
    responses = [torch.tensor(finished.beams[0].ids, device=input_ids.device) for finished in found]
    new = pad_sequence(responses, batch_first=True, padding_value=padding)  # (P, longest)
    return torch.cat([input_ids, new.to(input_ids.dtype)], dim=1)


def _refuse_others(
    config: GenerationConfig, processors: LogitsProcessorList, criteria: StoppingCriteriaList
) -> None:
    for name in ("num_beams", "num_return_sequences"):
        number = config.to_dict().get(name) or 1
        if number > 1:
            raise UserError(
                f"{name} is {number}, which repeats the prompts before the search sees them; leave it at 1 "
                "and set num_beams and num_successors in ivg.SearchConfig"
            )
    for other in [*processors, *criteria]:
        if not isinstance(other, _OURS):
            raise UserError(
                f"{type(other).__name__} has no part in the guided search; "
                "leave it out (stop strings belong in ivg.hf.Guidance)"
            )


def _given(value: float | None, default: float) -> Any:
    return default if value is None else value


def _names(prompts: Iterable[Sequence[int]]) -> list[str]:
    """Identify each prompt by its ids in the base and the occurrence number."""
    seen: Counter[str] = Counter()
    names = []
    for ids in prompts:
        digest = hashlib.sha256(repr(tuple(ids)).encode()).hexdigest()[:16]
        names.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return names
