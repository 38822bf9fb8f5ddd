"""The stage runner: skips what is done, redoes what changed, goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stages import RUN_VARIABLE, Runner, Stage, StageFailed, hash_path, read_stamp

from ivg.errors import UserError

# Copies `in.txt` to `out.txt` and counts its own runs in `runs.txt`.
COPY = "import shutil; shutil.copy('in.txt', 'out.txt'); open('runs.txt', 'a').write('x')"


def copy_stage(code: str = COPY, **changes) -> Stage:
    fields = {"name": "copy", "title": "copy", "inputs": ["in.txt"], "outputs": ["out.txt"]}
    return Stage(commands=[f'{sys.executable} -c "{code}"'], **{**fields, **changes})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in.txt").write_text("one", encoding="utf-8")
    return tmp_path


def run(folder: Path, *stages: Stage) -> None:
    Runner(folder, folder / "stamps", os.environ).run(stages)


def num_runs(folder: Path) -> int:
    return len((folder / "runs.txt").read_text(encoding="utf-8"))


def test_a_finished_stage_is_skipped(folder, capsys):
    run(folder, copy_stage())
    assert "stage 1 of 1: copy\n" in capsys.readouterr().out
    run(folder, copy_stage())
    assert "stage 1 of 1: copy – done before, skipped" in capsys.readouterr().out
    assert num_runs(folder) == 1


@pytest.mark.parametrize("change", ["input", "output changed", "output deleted", "command"])
def test_a_stage_is_run_again_when_anything_differs(folder, change):
    run(folder, copy_stage())
    stage = copy_stage()
    if change == "input":
        (folder / "in.txt").write_text("two", encoding="utf-8")
    elif change == "output changed":
        (folder / "out.txt").write_text("spoilt", encoding="utf-8")
    elif change == "output deleted":
        (folder / "out.txt").unlink()
    else:
        stage = copy_stage(COPY + "; 1")
    run(folder, stage)
    assert num_runs(folder) == 2
    assert (folder / "out.txt").read_text() == (folder / "in.txt").read_text()


def test_a_change_runs_only_what_depends_on_it(folder):
    second = Stage(
        name="second",
        title="second",
        commands=[f"{sys.executable} -c \"open('last.txt', 'a').write('x')\""],
        inputs=["out.txt"],
        outputs=["last.txt"],
    )
    run(folder, copy_stage(), second)
    (folder / "out.txt").write_text("spoilt", encoding="utf-8")
    run(folder, copy_stage(), second)
    # The copy was made again with the same content, so that what follows it still holds.
    assert num_runs(folder) == 2
    assert (folder / "last.txt").read_text() == "x"


def test_partial_outputs_survive_an_interruption_but_not_a_change_of_input(folder):
    fails = copy_stage("open('out.txt', 'a').write('part'); raise SystemExit(3)")
    for _ in range(2):
        with pytest.raises(StageFailed, match=r"stage copy failed \(exit code 3\)"):
            run(folder, fails)
    assert (folder / "out.txt").read_text() == "partpart"
    assert read_stamp(folder / "stamps", "copy") is None
    (folder / "in.txt").write_text("two", encoding="utf-8")
    with pytest.raises(StageFailed) as failure:
        run(folder, fails)
    assert failure.value.exit_code == 3
    assert (folder / "out.txt").read_text() == "part"


def test_a_stamp_holds_the_hashes_of_what_went_in_before_the_commands_ran(folder):
    run(folder, copy_stage(COPY + "; open('in.txt', 'w').write('changed')"))
    stamp = read_stamp(folder / "stamps", "copy")
    one = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # SHA-256 of "one"
    assert stamp["inputs"] == {"in.txt": one}
    assert stamp["outputs"] == {"out.txt": one}


def test_a_folder_hash_covers_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1", encoding="utf-8")
    before = hash_path(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    renamed = hash_path(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2", encoding="utf-8")
    assert len({before, renamed, hash_path(tmp_path / "a")}) == 3
    assert hash_path(tmp_path / "nothing") is None


def test_a_comment_in_a_yaml_input_changes_nothing_but_a_value_does(folder):
    stage = copy_stage(inputs=["in.txt", "a.yaml"])
    for text in ("# one\nbeta: 1\n", "# two\nbeta:   1\n"):
        (folder / "a.yaml").write_text(text, encoding="utf-8")
        run(folder, stage)
    assert num_runs(folder) == 1
    (folder / "a.yaml").write_text("beta: 2\n", encoding="utf-8")
    run(folder, stage)
    assert num_runs(folder) == 2


def test_a_missing_input_is_named(folder):
    with pytest.raises(UserError, match=r"stage copy needs gone\.txt, which is not there"):
        run(folder, copy_stage(inputs=["gone.txt"]))


def test_a_stage_that_writes_nothing_is_not_finished(folder):
    with pytest.raises(UserError, match=r"stage copy did not write out\.txt"):
        run(folder, copy_stage("pass"))
    assert read_stamp(folder / "stamps", "copy") is None


def runner_process(folder: Path, code: str) -> subprocess.Popen:
    """Start a runner of one stage in a process of its own, and wait until its command runs."""
    stage = copy_stage(code)
    script = (
        "import os, sys; from pathlib import Path; from stages import Runner, Stage;"
        f"Runner(Path({str(folder)!r}), Path({str(folder / 'stamps')!r}), os.environ).run([{stage!r}])"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2] / "recipes" / "quickstart"), *sys.path])
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 60
    while not (folder / "pid.txt").exists() or not (folder / "pid.txt").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def is_running(process: int) -> bool:
    """Tell whether a process is there and not merely waiting to be reaped."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


SLEEP_FIRST = (
    "import os, time, pathlib; first = not os.path.exists('pid.txt');"
    "pathlib.Path('pid.txt').write_text(str(os.getpid())); time.sleep(600 if first else 0);" + COPY
)


@pytest.mark.slow
def test_after_kill_9_the_orphaned_command_is_ended_and_the_stage_redone(folder):
    process = runner_process(folder, SLEEP_FIRST)
    orphan = int((folder / "pid.txt").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert is_running(orphan)
    run(folder, copy_stage(SLEEP_FIRST))
    assert not is_running(orphan)
    assert (folder / "out.txt").read_text() == "one"
    assert (
        json.loads((folder / "stamps" / "copy.stamp").read_text())["commands"]
        == copy_stage(SLEEP_FIRST).commands
    )


@pytest.mark.slow
def test_two_runs_at_once_are_refused(folder):
    process = runner_process(folder, SLEEP_FIRST)
    try:
        with pytest.raises(UserError, match="another run holds"):
            run(folder, copy_stage())
    finally:
        process.kill()
        process.wait()
        os.kill(int((folder / "pid.txt").read_text()), signal.SIGKILL)


def test_commands_carry_the_mark_by_which_leftovers_are_found(folder):
    code = f"import os; open('out.txt', 'w').write(os.environ['{RUN_VARIABLE}'])"
    run(folder, copy_stage(code))
    assert (folder / "out.txt").read_text() == str((folder / "stamps").resolve())
