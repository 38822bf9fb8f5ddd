"""The wheel, alone: installed into an empty environment, away from any checkout, it does what README.md says.

    python -m tests.wheel_check dist/ivg-*.whl          # installs all packages, runs the quickstart as it is
    python -m tests.wheel_check dist/ivg-*.whl --tiny   # this environment's packages, numbers made small

With --tiny, the empty environment sees the packages that are installed beside this one, but not the `ivg`
among them: a checkout is installed there by a hook, which is not run for a folder named in a .pth file.
"""

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
QUICKSTART = "recipes/quickstart"
RUNS = "runs/quickstart"
# Numbers of the quickstart with which every stage runs, and means nothing.
SMALL = {
    "prepare.yaml": {"num_train": 600, "num_validation": 24, "num_test": 8, "vocab_size": 400},
    "base.yaml": {"max_steps": 60, "n_layer": 2, "n_embd": 128},
    "untuned.yaml": {"max_steps": 40, "n_layer": 1},
    "rollouts.yaml": {"max_prompts": 24, "num_samples": 4, "reward_function": "ivg.rewards.vader_completion"},
    "rollouts_validation.yaml": {
        "max_prompts": 8, "num_samples": 4, "reward_function": "ivg.rewards.vader_completion"
    },
    "dpo.yaml": {"num_train_epochs": 1},
    "value.yaml": {"num_train_epochs": 1},
    "decode/*.yaml": {"max_new_tokens": 32},
    "sweep.yaml": {"limit": 4, "max_new_tokens": 32},
}  # fmt: skip
GUIDED = (
    f"--base {RUNS}/base --tuned {RUNS}/tuned --untuned {RUNS}/untuned --value {RUNS}/value "
    "--token_guidance implicit --chunk_guidance explicit --num_beams 2 --num_successors 2 --chunk_length 5 "
    f"--max_new_tokens 72 --temperature 0.7 --input {RUNS}/data/prompts.test.jsonl"
)
# What is run in the folder of a user's, in order, as it is documented.
COMMANDS = (
    "ivg --version",
    "ivg env",
    "ivg recipes list",
    f"python {QUICKSTART}/run.py",
    f"ivg train sft --config {QUICKSTART}/untuned.yaml --output_dir runs/again --max_steps 1",
    f"ivg decode {GUIDED} --output guided.jsonl --trace guided.trace.jsonl",
    "ivg view guided.trace.jsonl --output search.html",
    f"ivg eval gold-reward --function ivg.rewards.vader_completion --base {RUNS}/base "
    f"--files base={RUNS}/decoded/base.jsonl guided=guided.jsonl --output gold_reward.json",
    f"ivg eval report --folder {RUNS} --output judged",
)
# What must lie there afterwards.
WRITTEN = (
    f"{RUNS}/report.html",
    "runs/again/model.safetensors",
    "guided.jsonl",
    "search.html",
    "gold_reward.json",
)


class Place:
    """An empty environment and a folder to work in.

    Args:
        folder: an empty one, outside of the checkout.
    """

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        venv.create(folder / "venv", with_pip=True, symlinks=True)
        self.programs = folder / "venv" / "bin"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "venv" / "lib" / version / "site-packages"
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        self.environment = {key: value for key, value in os.environ.items() if key not in hidden}
        self.environment |= {
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def run(self, command: str) -> None:
        """Run a command line as a user would, and stop where it fails."""
        print(f"\n$ {command}", flush=True)
        started = time.monotonic()
        done = subprocess.run(shlex.split(command), cwd=self.work, env=self.environment, check=False)
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
        if done.returncode:
            sys.exit(f"exit code {done.returncode}: {command}")

    def ask(self, code: str) -> str:
        """Return what Python code prints."""
        command = [str(self.programs / "python"), "-c", code]
        done = subprocess.run(
            command, cwd=self.work, env=self.environment, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    def share_packages(self) -> None:
        """Let the environment see the packages beside this interpreter's, but no checkout."""
        (self.packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def check_content(wheel: Path) -> None:
    """A wheel holds the package and nothing else, for every machine."""
    assert wheel.name.endswith("-py3-none-any.whl"), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "ivg",
        f"{'-'.join(wheel.name.split('-')[:2])}.dist-info",
    }
    assert not [name for name in names if name.endswith((".so", ".cpp", ".pyc"))]
    packed = {name.removeprefix("ivg/_recipes/") for name in names if name.startswith("ivg/_recipes/")}
    listed = subprocess.run(
        ["git", "ls-files", "recipes"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert packed == {name.removeprefix("recipes/") for name in listed}


def install(place: Place, wheel: Path, *, is_tiny: bool) -> None:
    """Install the wheel, and show that nothing else provides `ivg`."""
    pip = f"python -m pip install --quiet --disable-pip-version-check --constraint {ROOT}/constraints.txt"
    if is_tiny:
        place.share_packages()
        assert place.ask("import ivg") == "ModuleNotFoundError: No module named 'ivg'"
        (place.packages / "shared.pth").unlink()  # or pip takes the checkout there for ivg
        place.run(f"{pip} --no-index --no-deps {wheel}")
        place.share_packages()
    else:
        place.run(f"{pip} torch=={torch.__version__.partition('+')[0]}")
        place.run(f"{pip} '{wheel}[train,eval]'")
    found = json.loads(place.ask("import ivg, json, sys; print(json.dumps([ivg.__file__, sys.path]))"))
    assert found[0] == str(place.packages / "ivg" / "__init__.py"), found[0]
    assert str(ROOT) not in found[1]


def shrink(recipe: Path) -> None:
    """Put small numbers into the copied files, each in place of one that is there."""
    for pattern, numbers in SMALL.items():
        paths = list(recipe.glob(pattern))
        assert paths, pattern
        for path in paths:
            text = path.read_text(encoding="utf-8")
            for key, number in numbers.items():
                text, count = re.subn(rf"\b{key}: [\w.]+", f"{key}: {number}", text)
                assert count == 1, (path.name, key)
            path.write_text(text, encoding="utf-8")


def check_commands(wheel: Path, folder: Path, *, is_tiny: bool) -> None:
    """Install the wheel in an empty folder and do there what is documented."""
    place = Place(folder)
    install(place, wheel, is_tiny=is_tiny)
    place.run("ivg recipes copy quickstart")
    if is_tiny:
        shrink(place.work / QUICKSTART)
    for command in COMMANDS:
        place.run(command)
    missing = [name for name in WRITTEN if not (place.work / name).exists()]
    assert not missing, missing


def main() -> None:
    """Check the wheel whose path is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--tiny", action="store_true", help="minutes instead of an hour")
    parser.add_argument("--folder", type=Path, help="a new folder to do it in, which stays")
    options = parser.parse_args()
    started = time.monotonic()
    wheel = options.wheel.resolve()
    check_content(wheel)
    if options.folder is not None:
        options.folder.mkdir(parents=True)
        check_commands(wheel, options.folder.resolve(), is_tiny=options.tiny)
    else:
        with tempfile.TemporaryDirectory() as folder:
            check_commands(wheel, Path(folder), is_tiny=options.tiny)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\nthe wheel stands alone: {len(COMMANDS)} commands, {time.monotonic() - started:.0f} s, of which "
        f"{used.ru_utime + used.ru_stime:.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
