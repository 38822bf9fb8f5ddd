"""A runner's rows beside the tokens that they should hold, to compare kept caches with recomputation."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ivg.engines.lockstep.model_runner import ModelRunner, Part

V = 32
PROMPTS = [[1, 2, 3, 9, 8, 7, 3, 2, 4, 11], [5], [13, 2, 2, 30, 17, 21]]


def runner_over(model: PreTrainedModel) -> ModelRunner:
    return ModelRunner(model, name="model", has_logits=True, num_ids=V, max_length=64)


class Batch:
    """A runner's rows beside the tokens that each row should hold."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        *,
        plain: PreTrainedModel,
        runner: ModelRunner | None = None,
    ) -> None:
        self.model, self.plain = model, plain
        self.runner = runner or runner_over(model)
        self.histories = [list(prompt) for prompt in prompts]
        self.state = self.runner.prefill(prompts)

    def feed(self, *columns: list[int]) -> Tensor:
        """Feed one list of tokens per row; return (R, n, V)."""
        for history, new in zip(self.histories, columns, strict=True):
            history += new
        return self.runner.feed(self.state, torch.tensor(columns))

    def select(self, *rows: int) -> None:
        self.runner.select(self.state, torch.tensor(rows))
        self.histories = [list(self.histories[row]) for row in rows]

    def join(self, kept: list[int], prompts: list[list[int]], repeats: list[int]) -> None:
        fresh = Part(self.runner.prefill(prompts), torch.tensor(repeats))
        self.state = self.runner.rebuild([Part(self.state, torch.tensor(kept)), fresh])
        self.histories = [list(self.histories[r]) for r in kept] + [list(prompts[r]) for r in repeats]

    def trim(self, *rows: int) -> None:
        self.state = self.runner.rebuild([Part(self.state, torch.tensor(rows))])
        self.histories = [list(self.histories[row]) for row in rows]

    def error(self) -> float:
        """How far the rows' last outputs are from those of each whole sequence alone, without a cache."""
        alone = [self.plain(input_ids=torch.tensor([ids])).logits[0, -1] for ids in self.histories]
        return float((self.state.last - torch.stack(alone)).abs().max())
