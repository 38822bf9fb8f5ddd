"""Resuming a killed job from its last complete checkpoint, and one run in one output folder.

`Trainer` writes checkpoints in place, so a kill inside a write leaves a folder that resumes wrongly. Here a
checkpoint counts only once a marker names its files and their sizes; the marker is written last.

Nothing is removed but what a run of ours wrote: checkpoints carry a mark from before their first byte, a
run's folder its settings. What a run replaces is moved aside, comes back if the new run fails before its
first step, and is removed after that step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ivg.errors import ProcessLostError, UserError, first_line, is_main_process
from ivg.run.console import note
from ivg.run.json_files import plain, write_json
from ivg.run.lock import hold_lock, lock_path

MARKER = "complete.json"
STARTED = "started.json"
SETTINGS = "run.json"
# What the collectives of gloo and NCCL say when a process at the other end is gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
# The run that is being replaced: moved here one by one, here as a whole, and given up.
_MOVING, _REPLACED, _DISCARDED = "_replaced.partial", "_replaced", "_discarded"
# What training and rollouts write into their folder, beside what users may keep there.
_WRITTEN = (
    *(SETTINGS, f"{PREFIX_CHECKPOINT_DIR}-*", "initial", "merged", "_rows", "samples", "*.partial"),
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
    "prompt_format.json",
    *("training_args.bin", "trainer_state.json", "README.md", "metrics.json"),
    *("value_evaluation.json", "value_evaluation.png"),
    *("completions.jsonl", "preferences.jsonl", "statistics.json"),
)
# What may differ between a killed run and its restart: none of it changes what is computed.
_FREE_KEYS = {
    *("overwrite_output", "resume_from_checkpoint", "logging_dir", "disable_tqdm", "hub_token"),
    "dataloader_pin_memory",
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
}


class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Mark each checkpoint once every process has written its part, then delete those beyond the limit.

    The rotation is done here and not by `Trainer`, which deletes the old checkpoint before the new one is
    known to be complete. After the first step a run that is being replaced is given up.
    """

    def __init__(self, arguments: TrainingArguments) -> None:
        self.limit = arguments.save_total_limit
        arguments.save_total_limit = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Give up what this run replaces: it can be trained."""
        if state.is_world_process_zero:
            keep_output(args.output_dir)

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


def begin_checkpoint(checkpoint: Path) -> None:
    """Make a checkpoint's folder, marked as ours before anything is written into it."""
    if is_main_process() and not _is_ours(checkpoint):
        partial = checkpoint.with_name(f"{checkpoint.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / STARTED, {"step": checkpoint.name}, sort_keys=True)
        partial.rename(checkpoint)
    PartialState().wait_for_everyone()


def _is_ours(checkpoint: Path) -> bool:
    return (checkpoint / STARTED).is_file() or (checkpoint / MARKER).is_file()


def mark_complete(checkpoint: Path) -> None:
    """Write a checkpoint's marker: the sizes of all its files."""
    sizes = {str(f.relative_to(checkpoint)): f.stat().st_size for f in checkpoint.rglob("*") if f.is_file()}
    sizes.pop(MARKER, None)
    write_json(checkpoint / MARKER, sizes, sort_keys=True)


def is_complete(checkpoint: Path) -> bool:
    """Tell whether a checkpoint has its marker, and every file in it the size that the marker says."""
    try:
        sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    files = {name: checkpoint / name for name in sizes}
    return all(file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items())


def last_complete_checkpoint(output_dir: str) -> str | None:
    """Return the newest complete checkpoint, after removing incomplete ones that a run of ours began.

    The main process removes and prints a line for each; the others wait for it.
    """
    state = PartialState()
    if is_main_process():
        for folder in _checkpoints(Path(output_dir)):
            if _is_ours(folder) and not is_complete(folder):
                note(f"removing {folder}: the job was killed while writing it")
                shutil.rmtree(folder)
    state.wait_for_everyone()
    complete = [folder for folder in _checkpoints(Path(output_dir)) if is_complete(folder)]
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
    folders = [folder for folder in _checkpoints(output) if _is_ours(folder)]
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


def on_main_process(action: Callable[[], object]) -> None:
    """Let the main process do something, the others wait for it; what it refuses is refused on all.

    Raises:
        UserError: that of the action.
    """
    refusal: list[str | None] = [None]
    if is_main_process():
        try:
            action()
        except UserError as error:
            refusal = [str(error)]
    if PartialState().num_processes > 1:
        broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise UserError(refusal[0])


@contextlib.contextmanager
def own_output(output_dir: str) -> Iterator[None]:
    """Keep every other job out of an output folder, and undo a claim that fails before its first step.

    Raises:
        UserError: another job writes there, or it cannot be written.
        ProcessLostError: one of several processes has ended.
    """
    folder = Path(output_dir)
    with contextlib.ExitStack() as held:

        def lock() -> None:
            with _writable(folder):
                is_new = not folder.exists()
                folder.mkdir(parents=True, exist_ok=True)
            if is_new:
                held.callback(_remove_if_empty, folder)
            held.enter_context(hold_lock(lock_path(folder), f"output_dir {output_dir}"))

        on_main_process(lock)
        try:
            yield
        except BaseException as error:
            if is_main_process():
                _undo_claim(folder)
            if isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST):
                raise ProcessLostError(
                    f"another process of this run has ended ({first_line(error)}); "
                    "start the run again to go on"
                ) from error
            raise


def claim_output(output_dir: str, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the output folder this run's own, until `keep_output` only for a try.

    Args:
        output_dir: the folder; made where it does not exist.
        settings: what decides the result; saved beside it as `run.json`.
        overwrite: replace what a run with other settings left there.

    Raises:
        UserError: the folder cannot be written, or holds a run with other settings or somebody else's files.
    """
    folder = Path(output_dir)
    ours = plain(json.loads(json.dumps(settings, sort_keys=True, default=str)))
    on_main_process(lambda: _claim(folder, ours, overwrite=overwrite))


def _claim(folder: Path, ours: dict[str, Any], *, overwrite: bool) -> None:
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / _DISCARDED, ignore_errors=True)
        if (folder / _MOVING).exists() or _read_settings(folder / SETTINGS) != ours:
            _undo_claim(folder)  # of a run that was killed before its first step
        theirs = _read_settings(folder / SETTINGS)
        _refuse_foreign_files(folder, is_run=theirs is not None)
        if theirs == ours:
            return
        if theirs is not None and not overwrite:
            changed = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
            raise UserError(
                f"output_dir {folder} holds a run with other settings ({', '.join(changed)}); "
                "give another folder, or --overwrite_output to replace it"
            )
        (folder / _MOVING).mkdir(parents=True)
        for entry in _written(folder):
            entry.rename(folder / _MOVING / entry.name)
        (folder / _MOVING).rename(folder / _REPLACED)
        write_json(folder / SETTINGS, ours, sort_keys=True)


def keep_output(output_dir: str) -> None:
    """Give up the run that this one replaces, if there is one: this one has shown that it can write."""
    folder = Path(output_dir)
    if (folder / _REPLACED).exists():
        (folder / _REPLACED).rename(folder / _DISCARDED)
        shutil.rmtree(folder / _DISCARDED)


def _undo_claim(folder: Path) -> None:
    """Put back what a claim moved aside, in place of what was written since; nothing after `keep_output`.

    A kill at any moment leaves a state from which this goes on.
    """
    if (folder / _REPLACED).exists():
        for entry in _written(folder):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (folder / _REPLACED).rename(folder / _MOVING)
    if (folder / _MOVING).exists():
        for entry in (folder / _MOVING).iterdir():
            entry.rename(folder / entry.name)
        (folder / _MOVING).rmdir()


def _written(folder: Path) -> list[Path]:
    """Return what is there of all that a run writes; what is being replaced is not part of it."""
    return [
        entry
        for entry in folder.iterdir()
        if entry.name != _MOVING and any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in _WRITTEN)
    ]


def _refuse_foreign_files(folder: Path, *, is_run: bool) -> None:
    """Refuse files that a run would write over or take for its own, but no run of ours has written."""
    foreign = [entry for entry in _checkpoints(folder) if not _is_ours(entry)]
    foreign += [] if is_run else _written(folder)
    if foreign:
        raise UserError(
            f"output_dir {folder} holds {foreign[0].name}, which no run of this product wrote there; "
            "give another folder, or move it away"
        )


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written: {error.strerror}") from error


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return content
