"""An output folder belongs to one run at a time; no other files are touched, no try loses anything."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ivg.errors import UserError
from ivg.training import resume

OLD, NEW = {"beta": 0.1}, {"beta": 0.2}


class Killed(BaseException):
    """Stands for a kill -9: nothing after it runs."""


def _finished(folder: Path) -> dict[str, bytes]:
    """Leave what a finished run leaves, beside a user's notes."""
    resume.claim_output(str(folder), OLD, overwrite=False)
    resume.keep_output(str(folder))
    for step in (5, 10):
        resume.begin_checkpoint(folder / f"checkpoint-{step}")
        (folder / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"moments")
        resume.mark_complete(folder / f"checkpoint-{step}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "initial").mkdir()
    (folder / "initial" / "model.safetensors").write_bytes(b"old start")
    (folder / "notes.md").write_text("mine")
    (folder / "model-backup.safetensors").write_bytes(b"mine too")
    return _content(folder)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def _try(folder: Path) -> None:
    """Overwrite as a run does that fails before its first step."""
    resume.claim_output(str(folder), NEW, overwrite=True)
    (folder / "initial").mkdir()
    (folder / "initial" / "model.safetensors").write_bytes(b"new start")
    raise UserError("weights are damaged")


def test_a_failed_try_leaves_the_old_run_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    before = _finished(folder)
    with pytest.raises(UserError, match="weights are damaged"), resume.own_output(str(folder)):
        _try(folder)
    assert _content(folder) == before


def test_a_new_run_replaces_the_old_one_after_its_first_step_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _finished(folder)
    with resume.own_output(str(folder)):
        resume.claim_output(str(folder), NEW, overwrite=True)
        assert (folder / "_replaced" / "model.safetensors").read_bytes() == b"weights"
        resume.keep_output(str(folder))
    assert set(_content(folder)) == {"run.json", "notes.md", "model-backup.safetensors"}


@pytest.mark.parametrize("settings", [OLD, NEW])
def test_a_kill_at_any_moment_of_a_try_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, float]
) -> None:
    """Die at the n-th rename, of the claim or of its undoing, for every n; then come back."""
    real, num_kills = Path.rename, 0
    for n in range(1, 40):
        folder = tmp_path / f"out{n}"
        before = _finished(folder)
        calls = 0

        def rename(path: Path, target: Path, n: int = n) -> Path:
            nonlocal calls
            calls += 1
            if calls == n:
                raise Killed
            return real(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            try:
                with pytest.raises(UserError):
                    _try(folder)
                resume._undo_claim(folder)
            except Killed:
                num_kills += 1
        if settings == OLD:
            resume.claim_output(str(folder), OLD, overwrite=False)
        else:
            with pytest.raises(UserError, match=r"holds a run with other settings \(beta\)"):
                resume.claim_output(str(folder), {"beta": 0.3}, overwrite=False)
        assert _content(folder) == before, n
    assert num_kills > 10


def test_a_try_that_was_killed_goes_on_with_the_same_settings(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    before = _finished(folder)
    with pytest.raises(UserError, match="damaged"):
        _try(folder)  # killed: nothing is undone
    resume.claim_output(str(folder), NEW, overwrite=True)
    assert (folder / "initial" / "model.safetensors").read_bytes() == b"new start"
    resume._undo_claim(folder)
    assert _content(folder) == before


@pytest.mark.parametrize(
    "name", ["checkpoint-500/optimizer.pt", "model.safetensors", "README.md", "samples/a"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_files_are_refused_and_stay(tmp_path: Path, name: str, overwrite: bool) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("a week of work")
    with (
        pytest.raises(
            UserError, match=f"holds {name.split('/')[0]}, which no run of this product wrote there"
        ),
        resume.own_output(str(tmp_path)),
    ):
        resume.claim_output(str(tmp_path), OLD, overwrite=overwrite)
    assert _content(tmp_path) == {name: b"a week of work"}


def test_a_checkpoint_put_beside_ours_is_never_removed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _finished(folder)
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(b"theirs")
    assert resume.last_complete_checkpoint(str(folder)) == str(folder / "checkpoint-10")
    assert (folder / "checkpoint-7" / "optimizer.pt").read_bytes() == b"theirs"
    with pytest.raises(UserError, match="holds checkpoint-7, which no run"):
        resume.claim_output(str(folder), NEW, overwrite=True)
    assert (folder / "checkpoint-7" / "optimizer.pt").read_bytes() == b"theirs"


def test_one_run_at_a_time(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with resume.own_output(out):
        with pytest.raises(UserError, match="is being written by process"), resume.own_output(out):
            pass
        other = f"from ivg.training.resume import own_output\nwith own_output({out!r}): print('in')"
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert "is being written by process" in done.stderr
        assert not done.stdout
    assert not (tmp_path / "out").exists()  # it was new, and nothing was written


def test_a_killed_runs_lock_stops_nobody(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    other = (
        "import time\nfrom ivg.training.resume import own_output\n"
        f"with own_output({out!r}):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=f"by process {job.pid}"), resume.own_output(out):
            pass
        job.kill()
        job.wait()
    time.sleep(0.05)
    with resume.own_output(out):
        pass
