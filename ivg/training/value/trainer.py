"""The value trainer: prefix scorers on stock token-classification classes, over `transformers.Trainer`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ivg.training.cards import CardMixin
from ivg.training.encoding import IGNORED
from ivg.training.value import losses
from ivg.training.value.arguments import RewardScale, ValueTrainingArguments
from ivg.training.value.data import ValueCollator
from ivg.training.value.heads import compact_labels, fold_normalisation, head_name
from ivg.training.value.metrics import evaluate_values, pair_accuracy_by_position
from ivg.training.value.policy import Policy


class ValueTrainer(CardMixin):
    """Train a token classifier that `prepare_value_model` has made ready.

    The loss is summed over response tokens only and divided by their number over all processes and
    accumulation steps. Rewards are trained on in `scale`; `save_model` folds it into the head.

    Args:
        model: the value model, PEFT-wrapped or not.
        args: the settings.
        tokenizer: saved with the model; gives the padding id.
        train_rows: from `encode_rewarded` or `encode_pairs`.
        eval_rows: the same, held out.
        scale: from the training rewards.
        policy: whose next tokens the cd-q targets are averaged over; None takes the token that came.
    """

    # The loss below is already divided by the count over all accumulation steps.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: ValueTrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        train_rows: Sequence[Mapping[str, Any]],
        eval_rows: Sequence[Mapping[str, Any]] | None,
        scale: RewardScale,
        policy: Policy | None = None,
    ) -> None:
        self.scale, self.policy = scale, policy
        self.table: list[dict[str, Any]] = []
        self._folds = False
        super().__init__(
            model=model,
            args=args,
            data_collator=ValueCollator(tokenizer.pad_token_id),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            compute_metrics=self.value_metrics,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Take the batches of one optimiser step, and count their loss positions over all processes."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        count = sum(int(self._loss_mask(batch["labels"]).sum()) for batch in batches)
        total = self.accelerator.reduce(torch.tensor(float(count), device=device), reduction="sum")
        return batches, total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return this process's share of the loss, scaled so that averaging over processes is exact."""
        values = self._values(model, inputs)
        total = self._loss(values, inputs["labels"], self._normalised(inputs.get("rewards")))
        assert num_items_in_batch is not None
        loss = total * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"values": values}) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, tuple[Tensor, ...]]:
        """Return `_values` as (B, T, S) and what to judge them by; the loss follows from all of them."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            values = self._values(model, inputs)
        targets = [inputs["labels"].transpose(1, 2)]
        targets += [inputs[key] for key in ("rewards", "groups") if key in inputs]
        return None, values.transpose(1, 2).contiguous(), tuple(target.contiguous() for target in targets)

    def value_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the exact mean loss and the table by prefix position, kept in `self.table`."""
        values = torch.from_numpy(prediction.predictions).transpose(1, 2)  # (N, S, T)
        targets = prediction.label_ids if isinstance(prediction.label_ids, tuple) else (prediction.label_ids,)
        labels = torch.from_numpy(targets[0]).transpose(1, 2)
        rewards = torch.from_numpy(targets[1]) if len(targets) > 1 else None
        loss = self._loss(values, labels, self._normalised(rewards)) / self._loss_mask(labels).sum()
        mask = self._loss_mask(labels).numpy()
        if rewards is None:
            self.table = pair_accuracy_by_position(prediction.predictions, mask)
        else:
            own_unit = values[:, 0] * self.scale.std + self.scale.mean  # (N, T)
            judged = own_unit.sigmoid() if self.args.binary_reward else own_unit
            self.table = evaluate_values(judged.numpy(), mask, targets[1], targets[2])
        return {"loss": float(loss), **_flat(self.table)}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; outside checkpoints, with the reward's scale folded into the head."""
        # push_to_hub saves with _internal_call too, but into the output folder.
        self._folds = output_dir is None or not _internal_call
        super().save_model(output_dir, _internal_call)
        self._folds = False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self._folds:
            state = state_dict if state_dict is not None else self.model.state_dict()
            bare = self.model.get_base_model() if is_peft_model(self.model) else self.model
            state_dict = fold_normalisation(state, head_name(bare), mean=self.scale.mean, std=self.scale.std)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            compact_labels(Path(output_dir or self.args.output_dir) / "config.json")

    def _values(self, model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return prefix values (B, S, T), float32; with a policy, then the expected next values (B, 1, T)."""
        shape = inputs["labels"].shape
        flat = {key: inputs[key].flatten(0, 1) for key in ("input_ids", "attention_mask", "labels")}
        if self.policy is None:
            values: Tensor = model(**flat)["values"]
            return values.view(shape)
        next_logits = self.policy.next_logits(
            inputs["policy_input_ids"],
            inputs["policy_attention_mask"],
            inputs["policy_labels"] != IGNORED,
        )
        found = model(**flat, next_logits=next_logits)
        return torch.stack([found["values"], found["next_values"]], dim=1)

    def _normalised(self, rewards: Tensor | None) -> Tensor | None:
        return None if rewards is None else (rewards - self.scale.mean) / self.scale.std

    def _loss_mask(self, labels: Tensor) -> Tensor:
        """Return the positions that the loss counts (B, T), from labels (B, S, T)."""
        return (labels != IGNORED).all(dim=1)

    def _loss(self, values: Tensor, labels: Tensor, rewards: Tensor | None) -> Tensor:
        """Return the objective's sum over positions, from `_values` and labels (B, S, T)."""
        mask = self._loss_mask(labels)
        if self.args.objective == "prefix-bt":
            return losses.prefix_bt_loss(values[:, 0], values[:, 1], mask)
        assert rewards is not None
        if self.args.objective == "cd-q":
            next_values = None if self.policy is None else values[:, 1]
            return losses.cd_q_loss(values[:, 0], rewards, mask, next_values)
        loss = losses.fudge_bce_loss if self.args.binary_reward else losses.fudge_loss
        return loss(values[:, 0], rewards, mask)


def _flat(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Turn the table into one metric per column and prefix position, such as `rank_correlation_25`."""
    return {
        f"{name}_{row['percent']}": float(value)
        for row in table
        for name, value in row.items()
        if name in ("rank_correlation", "pairwise_accuracy", "mean_squared_error")
    }
