"""Run stages in order, each at most once: what is done stays done, what was killed is done again.

A stage is one or more commands, the files they read and the files they write. When all its commands have
succeeded, a stamp records the fingerprint of what went in and the hashes of what came out; the stamp is
written last and at once, so that a kill at any moment leaves either a finished stage or an unfinished one.
A stage is skipped where its stamp still agrees with the files.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ivg.errors import UserError
from ivg.run.json_files import write_json

# Set for every command of a stage; how a later run recognises what an earlier one left behind.
RUN_VARIABLE = "IVG_STAGES_RUN"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a run.

    Attributes:
        name: names the stamp.
        title: what is done, for people.
        commands: command lines, run one after the other from the repository root.
        inputs: files and folders that decide the result; compared by content.
        outputs: files and folders that the commands write.
    """

    name: str
    title: str
    commands: Sequence[str]
    inputs: Sequence[str]
    outputs: Sequence[str]


class StageFailed(Exception):
    """A command of a stage ended with an exit code other than 0."""

    def __init__(self, stage: Stage, command: str, exit_code: int) -> None:
        super().__init__(f"stage {stage.name} failed (exit code {exit_code}): {command}")
        self.exit_code = exit_code


def hash_path(path: Path) -> str | None:
    """Return the SHA-256 of a file's content, or of a folder's names and contents; None if not there."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = [[str(file.relative_to(path)), hash_path(file)] for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def hash_input(path: Path) -> str | None:
    """Return the hash of an input; that of a YAML file leaves out comments and layout."""
    if path.suffix != ".yaml" or not path.is_file():
        return hash_path(path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def signature(stage: Stage, root: Path) -> dict[str, Any]:
    """Return what decides a stage's result: its commands, and its inputs' hashes.

    Raises:
        UserError: an input is missing.
    """
    inputs = {name: hash_input(root / name) for name in stage.inputs}
    for name, digest in inputs.items():
        if digest is None:
            raise UserError(f"stage {stage.name} needs {name}, which is not there; was it deleted meanwhile?")
    return {"commands": list(stage.commands), "inputs": inputs}


def output_hashes(stage: Stage, root: Path) -> dict[str, str | None]:
    """Return the hash of each output; None for one that is not there."""
    return {name: hash_path(root / name) for name in stage.outputs}


class Runner:
    """Runs stages from one folder, with stamps in another."""

    def __init__(self, root: Path, stamps: Path, environment: Mapping[str, str]) -> None:
        self.root = root
        self.stamps = stamps
        self.environment = {**environment, RUN_VARIABLE: str(stamps.resolve())}

    def run(self, stages: Sequence[Stage]) -> None:
        """Run every stage that is not finished, in order.

        Raises:
            UserError: another run is under way, or an input is missing.
            StageFailed: a command failed.
        """
        self.stamps.mkdir(parents=True, exist_ok=True)
        with _lock(self.stamps / "lock"):
            _end_leftovers(self.environment[RUN_VARIABLE])
            for number, stage in enumerate(stages, start=1):
                place = f"stage {number} of {len(stages)}: {stage.title}"
                if self.is_finished(stage):
                    print(f"{place} – done before, skipped", flush=True)
                else:
                    print(f"\n{place}", flush=True)
                    seconds = self.run_stage(stage)
                    print(f"stage {number} of {len(stages)} took {seconds:.0f} s", flush=True)

    def is_finished(self, stage: Stage) -> bool:
        """Tell whether a stage's stamp agrees with its commands, inputs and outputs."""
        stamp = read_stamp(self.stamps, stage.name)
        return (
            stamp is not None
            and {"commands": stamp["commands"], "inputs": stamp["inputs"]} == signature(stage, self.root)
            and stamp["outputs"] == output_hashes(stage, self.root)
        )

    def run_stage(self, stage: Stage) -> float:
        """Run a stage's commands and stamp it; return the seconds it took."""
        started = time.monotonic()
        signed = signature(stage, self.root)
        self._discard_other_outputs(stage, signed)
        for command in stage.commands:
            print(f"$ {command}", flush=True)
            exit_code = self.run_command(command)
            if exit_code != 0:
                raise StageFailed(stage, command, exit_code)
        outputs = output_hashes(stage, self.root)
        missing = [name for name, digest in outputs.items() if digest is None]
        if missing:
            raise UserError(
                f"stage {stage.name} did not write {', '.join(missing)}; its outputs are misnamed"
            )
        seconds = time.monotonic() - started
        write_json(self.stamps / f"{stage.name}.stamp", {**signed, "outputs": outputs, "seconds": seconds})
        return seconds

    def run_command(self, command: str) -> int:
        """Run one command line of a stage, and return its exit code."""
        return subprocess.run(shlex.split(command), cwd=self.root, env=self.environment).returncode

    def _discard_other_outputs(self, stage: Stage, signed: dict[str, Any]) -> None:
        """Keep what an interrupted attempt at the same work left, for its commands to go on from."""
        attempt = self.stamps / f"{stage.name}.started"
        if not attempt.is_file() or json.loads(attempt.read_text(encoding="utf-8")) != signed:
            for path in (self.root / name for name in stage.outputs):
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
            write_json(attempt, signed)


def read_stamp(stamps: Path, name: str) -> dict[str, Any] | None:
    """Return a finished stage's stamp, or None."""
    path = stamps / f"{name}.stamp"
    stamp: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return stamp


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file lock; the system lets go of it however the process ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run holds {path}; wait for it to end, or stop it") from None
        yield


def _end_leftovers(run: str) -> None:
    """Kill the commands of an earlier run that was itself killed: they would write the same files.

    They are found by the variable that every command of this run's stages inherits.
    """
    while leftovers := _processes_with(f"{RUN_VARIABLE}={run}".encode()):
        for process in leftovers:
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _processes_with(variable: bytes) -> list[int]:
    """Return the processes whose environment holds a variable (Linux; none elsewhere)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if variable in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found
