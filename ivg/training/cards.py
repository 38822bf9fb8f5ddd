"""Model cards: what was trained, on what, how it did, and the exact command."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ivg.errors import readable
from ivg.models.rendering import write_format
from ivg.training.resume import begin_checkpoint

_PACKAGES = ("trl", "transformers", "peft", "torch", "accelerate")


class CardMixin(Trainer):  # type: ignore[misc, unused-ignore]
    """What our trainers do otherwise than transformers' and TRL's.

    Checkpoints are marked as ours before they are written, the card is ours, and nobody is told of the run.

    Attributes:
        card: the card's text; None writes nothing.
        prompt_format: how prompts were rendered, saved with the weights; None writes nothing.
    """

    card: str | None = None
    prompt_format: dict[str, Any] | None = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the format of prompts too, so that decoding can compare it."""
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.prompt_format is not None:
            write_format(Path(output_dir or self.args.output_dir), self.prompt_format)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write the card as README.md into the output folder, from the main process."""
        if self.is_world_process_zero() and self.card is not None:
            (Path(self.args.output_dir) / "README.md").write_text(self.card, encoding="utf-8")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        begin_checkpoint(Path(self._get_output_dir(trial=trial)) / folder)
        super()._save_checkpoint(model, trial)

    def _send_telemetry(self) -> None:
        """Tell Hugging Face of TRL's use only where the user has asked for it."""
        if os.environ.get("HF_HUB_DISABLE_TELEMETRY", "1").lower() in ("0", "false", "no", "off"):
            super()._send_telemetry()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make the optimizer; what the user's options do not allow is one line."""
        with readable(f"optim {self.args.optim} or its options are refused"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Make the scheduler; what the user's options do not allow is one line."""
        with readable(f"lr_scheduler_type {self.args.lr_scheduler_type} or its options are refused"):
            return super().create_scheduler(*args, **kwargs)


def launch_command(stage: str, num_processes: int) -> str:
    """Return the command that does what this process does, without what is secret.

    Args:
        stage: which stage of `ivg train` it is; its flags are this process's.
        num_processes: of the launch.
    """
    processes = ["--num_processes", str(num_processes)] if num_processes > 1 else []
    return shlex.join(["ivg", "train", *processes, stage, *_without_secrets(sys.argv)[1:]])


def _without_secrets(argv: Sequence[str]) -> list[str]:
    """Put dots for the value of every flag that ends in `token`."""
    shown: list[str] = []
    for i, word in enumerate(argv):
        flag, equals, _ = word.partition("=")
        if i and argv[i - 1].startswith("--") and argv[i - 1].endswith("token"):
            shown.append("...")
        else:
            shown.append(f"{flag}=..." if equals and flag.endswith("token") else word)
    return shown


def model_card(
    *,
    title: str,
    stage: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
    command: str,
    base_model: str | None,
    dataset: str | None,
) -> str:
    """Compose a card.

    Args:
        title: heading.
        stage: what kind of training this was, a tag such as `dpo`.
        facts: name and value of what a reader must know: data, objective, reward unit, template.
        metrics: final figures; None before training has ended.
        command: what was typed.
        base_model: Hub name of the weights started from; None for a local folder.
        dataset: Hub name of the data; None for a local file.
    """
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["ivg", stage], "model_name": title}
    if base_model is not None:
        header["base_model"] = base_model
    if dataset is not None:
        header["datasets"] = [dataset]
    shown = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())
    figures = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted((metrics or {}).items()))
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {title}\n",
            "A small model that guides a frozen one while it decodes (Integrated Value Guidance).\n",
            f"| setting | value |\n|---|---|\n{shown}\n",
            "## Metrics\n",
            f"| metric | value |\n|---|---|\n{figures}\n" if figures else "Training goes on.\n",
            f"## Command\n\n```\n{command}\n```\n",
            f"Versions: {versions}.\n",
        ]
    )


def _cell(value: object) -> str:
    """Show a value in a table cell; text verbatim, so that a template can be copied."""
    text = f"`{json.dumps(value, ensure_ascii=False)}`" if isinstance(value, str) else str(value)
    return text.replace("|", "\\|")


def hub_name(name: str | None) -> str | None:
    """Return the name if it can only be a Hub name, not a local path."""
    return name if name is not None and name.count("/") <= 1 and not Path(name).exists() else None
