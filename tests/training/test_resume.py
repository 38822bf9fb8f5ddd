"""Only complete checkpoints count, and one folder holds one run."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from ivg.errors import UserError
from ivg.training import resume
from ivg.training.rollouts.arguments import RolloutArguments


def _checkpoint(output: Path, step: int, *, complete: bool = True) -> Path:
    folder = output / f"checkpoint-{step}"
    resume.begin_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.pt").write_bytes(b"moments")
    if complete:
        resume.mark_complete(folder)
    return folder


def test_the_newest_complete_checkpoint_counts_and_incomplete_ones_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _checkpoint(tmp_path, 9)
    _checkpoint(tmp_path, 10)
    broken = _checkpoint(tmp_path, 11, complete=False)
    assert resume.last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert not broken.exists()
    assert f"removing {broken}" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_marked_checkpoint_with_a_damaged_file_is_incomplete(tmp_path: Path, damage: str) -> None:
    folder = _checkpoint(tmp_path, 3)
    if damage == "missing":
        (folder / "optimizer.pt").unlink()
    else:
        (folder / "optimizer.pt").write_bytes(b"mom")
    assert resume.last_complete_checkpoint(str(tmp_path)) is None
    assert not folder.exists()


def test_the_old_checkpoint_goes_only_after_the_new_one_is_marked(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), save_total_limit=1, use_cpu=True)
    callback = resume.CompleteCheckpoints(arguments)
    assert arguments.save_total_limit is None  # Trainer would delete before the marker is written
    old, new = _checkpoint(tmp_path, 5), _checkpoint(tmp_path, 10, complete=False)
    callback.on_save(arguments, TrainerState(global_step=10), TrainerControl())
    assert resume.is_complete(new)
    assert not old.exists()


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), save_total_limit=1, use_cpu=True)
    callback = resume.CompleteCheckpoints(arguments)
    best, other = _checkpoint(tmp_path, 5), _checkpoint(tmp_path, 7)
    _checkpoint(tmp_path, 10, complete=False)
    state = TrainerState(global_step=10, best_model_checkpoint=str(best))
    callback.on_save(arguments, state, TrainerControl())
    assert best.exists()
    assert not other.exists()


def test_the_rotation_takes_our_checkpoints_alone(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), save_total_limit=1, use_cpu=True)
    callback = resume.CompleteCheckpoints(arguments)
    foreign = tmp_path / "checkpoint-3"  # put there while the run trains
    foreign.mkdir()
    (foreign / "optimizer.pt").write_bytes(b"a week of work")
    ours = _checkpoint(tmp_path, 5)
    _checkpoint(tmp_path, 10, complete=False)
    callback.on_save(arguments, TrainerState(global_step=10), TrainerControl())
    assert not ours.exists()
    assert (foreign / "optimizer.pt").read_bytes() == b"a week of work"


@pytest.mark.parametrize(("given", "step"), [(None, 10), (True, 10), ("true", 10), ("7", 7), (False, None)])
def test_what_resume_from_checkpoint_takes(
    tmp_path: Path, given: str | bool | None, step: int | None
) -> None:
    for complete in (7, 10):
        _checkpoint(tmp_path, complete)
    _checkpoint(tmp_path, 11, complete=False)
    named = str(tmp_path / f"checkpoint-{given}") if given == "7" else given
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments.resume_from_checkpoint = named
    expected = None if step is None else str(tmp_path / f"checkpoint-{step}")
    assert resume.checkpoint_to_resume(arguments) == expected


@pytest.mark.parametrize("name", ["checkpoint-11", "checkpoint-12"])
def test_a_named_checkpoint_must_be_complete(tmp_path: Path, name: str) -> None:
    _checkpoint(tmp_path, 11, complete=False)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments.resume_from_checkpoint = str(tmp_path / name)
    for check in (resume.check_resume, resume.checkpoint_to_resume):
        with pytest.raises(UserError, match=f"{name} is not a complete checkpoint"):
            check(arguments)


def test_a_folder_belongs_to_the_settings_that_claimed_it(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    resume.claim_output(output, {"beta": 0.1, "seed": 0}, overwrite=False)
    resume.keep_output(output)
    left = _checkpoint(tmp_path / "run", 5)
    resume.claim_output(output, {"beta": 0.1, "seed": 0}, overwrite=False)
    with pytest.raises(UserError, match=r"holds a run with other settings \(beta\)"):
        resume.claim_output(output, {"beta": 0.2, "seed": 0}, overwrite=False)
    assert left.exists()
    resume.claim_output(output, {"beta": 0.2, "seed": 0}, overwrite=True)
    assert not left.exists()
    resume.keep_output(output)
    assert not list(Path(output).rglob("checkpoint-5"))


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        resume.claim_output(str(tmp_path / "file" / "run"), {}, overwrite=False)


@pytest.mark.parametrize("folder", [False, True])
def test_data_that_has_changed_is_another_run(tmp_path: Path, folder: bool) -> None:
    def settings(text: str) -> dict[str, Any]:
        name = tmp_path / "rows"
        if folder:
            datasets.Dataset.from_list([{"text": text}]).save_to_disk(name)
        else:
            name.write_text(text)
        return resume.settings_of(
            RolloutArguments(model_name_or_path="m", dataset_name=str(name), output_dir="o")
        )

    assert settings("a") == settings("a")
    assert settings("a") != settings("b")


def test_who_is_told_of_a_run_does_not_make_it_another() -> None:
    def settings(**keys: Any) -> dict[str, Any]:
        return resume.settings_of(TrainingArguments(output_dir="o", use_cpu=True, **keys))

    assert settings(report_to="none", run_name="a", project="b") == settings(report_to="none")
    assert settings(report_to="none") != settings(report_to="none", seed=1)


def test_json_has_no_nan(tmp_path: Path) -> None:
    resume.write_json(tmp_path / "a.json", {"x": [float("nan"), 1.5], "y": {"z": float("-inf")}})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"x": [None, 1.5], "y": {"z": None}}


def test_json_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resume.write_json(tmp_path / "a.json", {"x": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        resume.write_json(tmp_path / "a.json", {"x": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": 1\n}\n'
