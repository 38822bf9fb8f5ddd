"""Resuming a killed job from its last complete checkpoint, and refusing to mix two runs in one folder.

`Trainer` writes checkpoints in place, so a kill inside a write leaves a folder that resumes wrongly. Here a
checkpoint counts only once a marker names its files and their sizes; the marker is written last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ivg.errors import UserError, is_main_process

MARKER = "complete.json"
SETTINGS = "run.json"
# What may differ between a killed run and its restart: neither changes what is computed.
_FREE_KEYS = {"overwrite_output", "resume_from_checkpoint", "logging_dir", "disable_tqdm", "hub_token"}


def write_json(path: Path, content: object) -> None:
    """Write a JSON file so that it is either whole or not there; NaN and infinity, not JSON, become null."""
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(_plain(content), indent=2, sort_keys=True, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Mark each checkpoint once every process has written its part, then delete those beyond the limit.

    The rotation is done here and not by `Trainer`, which deletes the old checkpoint before the new one is
    known to be complete.
    """

    def __init__(self, arguments: TrainingArguments) -> None:
        self.limit = arguments.save_total_limit
        arguments.save_total_limit = None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Write the marker of the checkpoint that has just been saved."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            output = Path(args.output_dir)
            mark_complete(output / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
            for folder in _old_checkpoints(output, self.limit, best):
                shutil.rmtree(folder)
        return control


def mark_complete(checkpoint: Path) -> None:
    """Write a checkpoint's marker: the sizes of all its files."""
    sizes = {str(f.relative_to(checkpoint)): f.stat().st_size for f in checkpoint.rglob("*") if f.is_file()}
    sizes.pop(MARKER, None)
    write_json(checkpoint / MARKER, sizes)


def is_complete(checkpoint: Path) -> bool:
    """Tell whether a checkpoint has its marker, and every file in it the size that the marker says."""
    try:
        sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    files = {name: checkpoint / name for name in sizes}
    return all(file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items())


def last_complete_checkpoint(output_dir: str) -> str | None:
    """Return the newest complete checkpoint, after removing incomplete ones.

    The main process removes and prints a line for each; the others wait for it.
    """
    state = PartialState()
    if is_main_process():
        for folder in _checkpoints(Path(output_dir)):
            if not is_complete(folder):
                print(f"removing {folder}: the job was killed while writing it")  # noqa: T201
                shutil.rmtree(folder)
    state.wait_for_everyone()
    complete = _checkpoints(Path(output_dir))
    return str(complete[-1]) if complete else None


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """Return the checkpoint to go on from: the one named, else the last complete one; None to start anew.

    `resume_from_checkpoint` may be a folder, `true` (as if unset) or `false`.

    Raises:
        UserError: the folder named is not a complete checkpoint.
    """
    named = _named_checkpoint(arguments)
    check_resume(arguments)
    if isinstance(named, str):
        return named
    return last_complete_checkpoint(arguments.output_dir) if named else None


def check_resume(arguments: TrainingArguments) -> None:
    """Refuse a `resume_from_checkpoint` that is not a complete checkpoint."""
    named = _named_checkpoint(arguments)
    if isinstance(named, str) and not is_complete(Path(named)):
        raise UserError(
            f"resume_from_checkpoint {named} is not a complete checkpoint from here: no {MARKER} there "
            "that fits its files; leave it out to go on from the last complete one"
        )


def _named_checkpoint(arguments: TrainingArguments) -> str | bool:
    named = arguments.resume_from_checkpoint
    words = {"none": True, "true": True, "false": False}
    return words.get(str(named).lower(), str(named))


def _checkpoints(output: Path) -> list[Path]:
    """Return the checkpoint folders, oldest step first."""
    found = [(f.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"), f) for f in output.glob("checkpoint-*")]
    return [folder for _, folder in sorted((int(step), f) for step, f in found if step.isdigit())]


def _old_checkpoints(output: Path, limit: int | None, best: str | None) -> list[Path]:
    if limit is None:
        return []
    folders = _checkpoints(output)
    return [folder for folder in folders[:-limit] if folder.name != best]


def settings_of(*arguments: Any) -> dict[str, Any]:
    """Collect what decides a script's result: its dataclasses' values, the content of its data files, and
    for training how many processes share it and how, for a checkpoint holds one part for each.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        if isinstance(argument, TrainingArguments):
            values |= argument.to_dict() | {"processes": _processes(argument)}
        else:
            values |= dataclasses.asdict(argument)
    for key in ("dataset_name", "eval_dataset_name"):
        if values.get(key) is not None and Path(values[key]).exists():
            values[f"{key}_sha256"] = _digest(Path(values[key]))
    return {key: value for key, value in values.items() if key not in _FREE_KEYS}


def _digest(data: Path) -> str:
    """Hash a data file, or the states of a saved dataset, which hold a fingerprint of its content."""
    files = [data] if data.is_file() else sorted(data.rglob("state.json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _processes(arguments: TrainingArguments) -> str:
    plugin = arguments.deepspeed_plugin
    how = "" if plugin is None else f", ZeRO-{plugin.zero_stage}"
    return f"{PartialState().num_processes}{how}"


def claim_output(output_dir: str, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the output folder this run's own.

    Args:
        output_dir: the folder; made where it does not exist.
        settings: what decides the result; saved beside it as `run.json`.
        overwrite: discard what a run with other settings left there.

    Raises:
        UserError: the folder cannot be written, or holds a run with other settings.
    """
    folder = Path(output_dir)
    state = PartialState()
    ours = _plain(json.loads(json.dumps(settings, sort_keys=True, default=str)))
    theirs = _read_settings(folder / SETTINGS)
    if theirs is not None and theirs != ours and not overwrite:
        changed = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        raise UserError(
            f"output_dir {output_dir} holds a run with other settings ({', '.join(changed)}); "
            "give another folder, or --overwrite_output to discard it"
        )
    # Everyone has compared before anyone writes.
    state.wait_for_everyone()
    if is_main_process():
        try:
            if overwrite and theirs is not None and theirs != ours:
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / SETTINGS, ours)
        except OSError as error:
            raise UserError(f"output_dir {output_dir} cannot be written: {error.strerror}") from error
    state.wait_for_everyone()


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return content
