"""Sampling from a policy and scoring the samples, block by block, so that a killed job loses one block.

Prompts are cut into fixed blocks. A block is sampled and scored whole, and written as one file, by the
process whose turn it is; a block whose lines are all there is done. What a block holds depends on the input
and the settings alone, not on the number of processes or on interruptions.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from ivg.errors import UserError
from ivg.models.loading import Models
from ivg.models.plan import ModelInfos, inspect_models, reading_models
from ivg.models.prompts import PROMPT_FIELDS, UNREAD_FIELDS, check_row, identities, prompt_text
from ivg.rewards import Reward, score
from ivg.run.api import generate
from ivg.run.console import is_quiet
from ivg.run.processes import wait_for_others
from ivg.run.resume import Line, LineFile, Lines, fill
from ivg.run.tasks import make_tasks
from ivg.training.data import load_rows
from ivg.training.dataset_adapters import adapt
from ivg.training.resume import keep_output
from ivg.training.rollouts.arguments import RolloutArguments


def load_prompts(arguments: RolloutArguments) -> list[dict[str, Any]]:
    """Read the distinct prompts, each with the id that its draws depend on.

    Raises:
        UserError: unreadable, or a row without a prompt (with its number).
    """
    dataset = load_rows(arguments.dataset_name, arguments.dataset_config, arguments.dataset_split)
    distinct: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(adapt(dataset, arguments.adapter, arguments.dataset_name), start=1):
        checked = check_row(_prompt_part(row), f"{arguments.dataset_name} row {number}")
        distinct.setdefault(json.dumps({**checked, "id": None}, sort_keys=True), checked)
    rows = list(distinct.values())[: arguments.max_prompts]
    return [{**row, "id": name} for row, name in zip(rows, identities(rows), strict=True)]


def _prompt_part(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what makes a prompt row; TRL's conversational prompts are messages."""
    fields = ("id", *PROMPT_FIELDS, "input", *UNREAD_FIELDS)  # `check_row` refuses the last
    part = {key: row[key] for key in fields if row.get(key) is not None}
    if isinstance(part.get("prompt"), list):
        part["messages"] = part.pop("prompt")
    return part


def inspect_policy(prompts: Sequence[dict[str, Any]], arguments: RolloutArguments) -> ModelInfos:
    """Describe the policy, and check every prompt against its template and context before any is sampled.

    Raises:
        UserError: no such model, a setting out of range, or prompts that do not fit (with the first one).
    """
    infos = inspect_models(arguments.policy())
    once = dataclasses.replace(arguments.sampling(), num_samples=1)
    _, bad = make_tasks(prompts, reading_models(infos.base, ()), once)
    if bad:
        first = prompts[bad[0].index]
        raise UserError(
            f"{arguments.dataset_name}: {len(bad)} of {len(prompts)} distinct prompts cannot be answered; "
            f"the first, {prompt_text(first) or first['messages']!r:.60}: {bad[0].reason}"
        )
    return infos


def sample_blocks(
    prompts: Sequence[dict[str, Any]],
    models: Models,
    reward: Reward,
    arguments: RolloutArguments,
    folder: Path,
) -> None:
    """Sample and score this process's share of the blocks that are not done yet.

    Args:
        prompts: all prompts, the same on every process.
        models: the policy as base, on this process's device.
        reward: scores the samples.
        arguments: the settings.
        folder: where finished blocks lie.
    """
    state = PartialState()
    starts = range(0, len(prompts), arguments.block_size)
    blocks = [prompts[start : start + arguments.block_size] for start in starts]
    mine = range(state.process_index, len(blocks), state.num_processes)
    share = f" (process 1 of {state.num_processes})" if state.num_processes > 1 else ""
    total = sum(len(blocks[block]) for block in mine)
    name = f"sampling{share}"
    with tqdm(total=total, unit="prompt", desc=name, disable=not state.is_main_process or is_quiet()) as bar:
        sampler = _BlockSampler(blocks, models, reward, arguments)
        for block in mine:
            keys = [_key(row["id"], i) for row in blocks[block] for i in range(arguments.num_samples)]
            expected = Lines(keys, lambda line: _key(line["id"], line["sample"]))
            with LineFile(block_path(folder, block), expected) as file:
                fill([file], sampler, block, range(len(keys)))
            if state.is_main_process:
                keep_output(arguments.output_dir)
            bar.update(len(blocks[block]))
    wait_for_others()


def _key(name: str, sample: int) -> str:
    return json.dumps([name, sample])


@dataclasses.dataclass(frozen=True, slots=True)
class _BlockSampler:
    """Samples and scores the prompts of a block."""

    blocks: Sequence[Sequence[dict[str, Any]]]
    models: Models
    reward: Reward
    arguments: RolloutArguments

    def lines(self, block: int) -> Iterator[tuple[Line, ...]]:
        samples = _samples(self.blocks[block], self.models, self.reward, self.arguments)
        return ((sample,) for sample in samples)

    def skip(self, block: int) -> None:
        """Nothing is counted here."""


def _samples(
    prompts: Sequence[dict[str, Any]], models: Models, reward: Reward, arguments: RolloutArguments
) -> list[dict[str, Any]]:
    responses = generate(
        prompts, models, sampling=arguments.sampling(), max_batch_rows=arguments.max_batch_rows
    )
    rows, texts = [response.prompt for response in responses], [response.text for response in responses]
    name = arguments.reward_function or str(arguments.reward_model)
    return [
        {
            "id": response.id,
            "sample": index % arguments.num_samples,
            "prompt": row["messages"] if row.get("messages") is not None else prompt_text(row),
            "completion": response.text,
            # JSON has no NaN: null where there is no score.
            "reward": value if math.isfinite(value) else None,
            "num_tokens": response.num_tokens,
            "finish_reason": response.finish_reason,
        }
        for index, (response, row, value) in enumerate(
            zip(responses, rows, score(reward, rows, texts, name), strict=True)
        )
    ]


def block_path(folder: Path, block: int) -> Path:
    """Return where a finished block lies."""
    return folder / f"block-{block:06d}.jsonl"
