"""Rows as the ids that training feeds: those that decoding feeds, and that rewards and values read.

TRL's trainers would render rows themselves, with another result for templates whose generation prompt or
whole conversation differs from what is sampled (`ivg.models.rendering`). So they get ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import trl
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ivg.errors import UserError
from ivg.models.rendering import Renderer
from ivg.training.rows import as_prompt_row, text_of
from ivg.training.tables import table_of

IGNORED = -100
_REASON_FIELDS = {
    "completion": "finish_reason",
    "chosen": "chosen_finish_reason",
    "rejected": "rejected_finish_reason",
}


def encode(
    rows: datasets.Dataset,
    name: str,
    renderer: Renderer,
    training: TrainingArguments,
) -> datasets.Dataset:
    """Turn checked rows into ids for one of TRL's trainers.

    Whole texts and whole conversations (fine-tuning) have no prompt of their own, and are left to TRL.

    Args:
        rows: in TRL's columns, prompts apart.
        name: what to call them in an error message.
        renderer: how the model reads them.
        training: TRL's config, whose class says which trainer.

    Raises:
        UserError: a row that the template refuses, or TRL's settings that would render rows anew.
    """
    if "prompt" not in rows.column_names:
        _check_conversations(rows, name, renderer)
        told = renderer.chat_template_kwargs
        # TRL tells the template what stands in this column.
        return rows.add_column("chat_template_kwargs", [told] * len(rows)) if told else rows
    renderer.require_end(name)
    if isinstance(training, trl.SFTConfig):
        if training.assistant_only_loss:
            raise UserError(f"{name}: assistant_only_loss is for rows of messages; drop it for completions")
        learns_prompts = training.completion_only_loss is False
        return _map(rows, name, lambda row: encode_completion(row, renderer, learns_prompts=learns_prompts))
    if isinstance(training, trl.RewardConfig):
        return _map(rows, name, lambda row: encode_judged_pair(row, renderer))
    return _map(rows, name, lambda row: encode_pair(row, renderer))


def encode_completion(
    row: Mapping[str, Any], renderer: Renderer, *, learns_prompts: bool = False
) -> dict[str, list[int]]:
    """Return `input_ids` and `labels` of prompt and completion; the prompt is learnt only on demand."""
    prompt = renderer.prompt_ids(as_prompt_row(row["prompt"]))
    response = response_ids(row, "completion", renderer)
    before = prompt if learns_prompts else [IGNORED] * len(prompt)
    return {"input_ids": prompt + response, "labels": before + response}


def encode_pair(row: Mapping[str, Any], renderer: Renderer) -> dict[str, list[int]]:
    """Return `prompt_ids`, `chosen_ids` and `rejected_ids` for a model that writes responses."""
    return {
        "prompt_ids": renderer.prompt_ids(as_prompt_row(row["prompt"])),
        "chosen_ids": response_ids(row, "chosen", renderer),
        "rejected_ids": response_ids(row, "rejected", renderer),
    }


def encode_judged_pair(row: Mapping[str, Any], renderer: Renderer) -> dict[str, Any]:
    """Return `chosen_ids` and `rejected_ids`, prompts included, for a model that judges responses."""
    prompt = as_prompt_row(row["prompt"])
    ids = {f"{key}_ids": renderer.judged_ids(prompt, text_of(row[key])) for key in ("chosen", "rejected")}
    return {**ids, **({"margin": row["margin"]} if "margin" in row else {})}


def response_ids(row: Mapping[str, Any], key: str, renderer: Renderer) -> list[int]:
    """Return a response's ids, closed unless the row says that it was cut at a length.

    Args:
        row: a training row.
        key: `completion`, `chosen` or `rejected`; `finish_reason`, or `chosen_finish_reason` and so on, says
            how it ended (`eos`, `stop`, or a length); a row without it came to its end.
        renderer: the model's.
    """
    is_ended = (row.get(_REASON_FIELDS[key]) or "eos") in ("eos", "stop")
    return renderer.response_ids(text_of(row[key]), is_ended=is_ended)


def _map(
    rows: datasets.Dataset, name: str, encode_row: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> datasets.Dataset:
    encoded = []
    for number, row in enumerate(rows, start=1):
        try:
            encoded.append(encode_row(row))
        except UserError as error:
            raise UserError(f"{name} row {number}: {error}") from error
    return table_of(encoded, f"{name} as ids")


def apply_tokens(tokenizer: PreTrainedTokenizerBase, training: trl.SFTConfig | trl.RewardConfig) -> None:
    """Set the EOS that TRL's trainer would set after the rows are encoded."""
    if training.chat_template_path is not None:
        raise UserError(
            "chat_template_path would give the model another template than its rows were rendered with; "
            "save the template with the tokenizer, and name that folder as tokenizer_path"
        )
    if training.eos_token is not None:
        if training.eos_token not in tokenizer.get_vocab():
            raise UserError(f"eos_token {training.eos_token!r} is not in the tokenizer's vocabulary")
        tokenizer.eos_token = training.eos_token


def _check_conversations(rows: datasets.Dataset, name: str, renderer: Renderer) -> None:
    """Refuse whole conversations in templates that open an answer otherwise than they write one.

    Such a template (DeepSeek-R1-distill's) opens a thought in the generation prompt that a written turn
    lacks: the model would never have seen what decoding begins with.
    """
    if "messages" not in rows.column_names or renderer.template != "chat":
        return
    prompt = {"messages": [{"role": "user", "content": "a"}]}
    opened, written = renderer.prompt_ids(prompt), renderer.judged_ids(prompt, "b")
    if written[: len(opened)] != opened:
        decode = renderer.tokenizer.decode
        raise UserError(
            f"{name}: decoding opens an answer with {decode(opened)!r}, but this chat template writes whole "
            f"conversations as {decode(written)!r}; give rows of prompt and completion instead of messages"
        )


class EncodedPairs:
    """Makes TRL's DPO trainer take the ids of its rows as they are (before it in the bases)."""

    def _prepare_dataset(
        self, dataset: datasets.Dataset, processing_class: Any, args: trl.DPOConfig, dataset_name: str
    ) -> datasets.Dataset:
        """Leave out rows of which cutting would leave no response; TRL does so too."""
        if args.max_length is None or args.truncation_mode != "keep_start":
            return dataset
        limit = args.max_length
        return dataset.filter(lambda row: len(row["prompt_ids"]) < limit)
