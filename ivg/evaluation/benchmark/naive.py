"""IVG decoded the plain way, as the yardstick of the benchmark.

One prompt at a time; every model prefills the prompt once for each of its W x K rows; caches grow by
concatenation; the value model reads prompt and response again from the start at every chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ivg.evaluation.benchmark.workloads import BenchmarkModels, Workload


class _Stepper:
    """A causal LM with a concatenated cache over the rows."""

    def __init__(self, model: PreTrainedModel, prompt: Tensor) -> None:
        self._model = model
        self._cache = DynamicCache()
        self.logits = self.feed(prompt)

    def feed(self, ids: Tensor) -> Tensor:
        self.logits = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        return self.logits

    def select(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self.logits = self.logits[rows]


@torch.inference_mode()
def decode(models: BenchmarkModels, workload: Workload, prompt: Sequence[int]) -> tuple[int, Tensor]:
    """Decode one prompt.

    Returns:
        The number of tokens that the guides were fed, and the best response's ids.
    """
    search = workload.search
    num_rows = search.rows_per_prompt
    device = models.base.device
    ids = torch.tensor([list(prompt)], device=device).repeat(num_rows, 1)
    steppers = [_Stepper(model, ids) for model in (models.base, models.tuned, models.untuned)]
    fed = 2 * ids.numel()
    response = ids[:, :0]
    while response.shape[1] < workload.new_tokens:
        for _ in range(min(search.chunk_length, workload.new_tokens - response.shape[1])):
            base, tuned, untuned = (s.logits.float().log_softmax(dim=-1) for s in steppers)
            probs = ((base + tuned - untuned) / workload.temperature).softmax(dim=-1)
            token = torch.multinomial(probs, 1)
            response = torch.cat([response, token], dim=1)
            for stepper in steppers:
                stepper.feed(token)
            fed += 2 * num_rows
        text = torch.cat([ids, response], dim=1)
        values = _values(models.value, text)
        fed += text.numel()
        best = values.topk(search.num_beams).indices
        rows = best.repeat_interleave(search.num_successors)
        response = response[rows]
        for stepper in steppers:
            stepper.select(rows)
    return fed, response[0]


def _values(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return Q of each row's last token, having read the row from its start."""
    hidden = model.get_submodule(model.base_model_prefix)(input_ids=ids[:, :-1], use_cache=False)
    head = model.get_submodule("classifier" if model.config.model_type == "gpt2" else "score")
    scores: Tensor = head(hidden.last_hidden_state[:, -1])
    return scores.float().gather(1, ids[:, -1:]).squeeze(1)
