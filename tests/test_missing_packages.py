"""Packages of an extra that is not installed: one line that names it and the command, and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ivg import errors
from ivg.config import ModelConfig
from ivg.errors import UserError, needs
from ivg.models.inspection import inspect_model
from ivg.rewards import RewardConfig, load_reward

ROOT = Path(__file__).parents[1]
# Stands in for an installation without a package: nothing on the path is found under its name.
BLOCK = """
import os
import sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] == os.environ["BLOCKED"]:
            return None
        return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("train/dpo.py", "trl"),
        ("train/reward.py", "trl"),
        ("train/rollouts.py", "trl"),
        ("train/sft.py", "trl"),
        ("train/value.py", "trl"),
        ("train/value.py", "matplotlib"),
        ("eval/alpaca.py", "openai"),
        ("eval/alpaca.py", "alpaca_eval"),
        ("eval/gold_reward.py", "scipy"),
        ("eval/report.py", "matplotlib"),
        ("eval/speed.py", "matplotlib"),
        ("eval/sweep.py", "scipy"),
    ],
)
def test_a_script_without_a_package_names_the_extra(tmp_path, script, module):
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        env={**os.environ, "PYTHONPATH": path, "BLOCKED": module},
        capture_output=True,
        text=True,
        check=False,
    )
    extra = Path(script).parent.name
    expected = f"error: {module} is not installed; run: pip install -c constraints.txt -e '.[{extra}]'\n"
    assert (done.returncode, done.stderr, done.stdout) == (2, expected, "")


def test_our_own_modules_are_not_packages_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"ivg\.absent"), needs("train"):
        import ivg.absent  # noqa: F401


def test_an_interruption_is_one_line(capsys):
    @errors.exit_on_user_error
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(SystemExit) as stop, needs("train"):
        raise KeyboardInterrupt
    assert stop.value.code == 130


@pytest.mark.parametrize("name", ["vader", "vader_completion"])
def test_vader_is_looked_for_before_anything_is_sampled(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    with pytest.raises(UserError, match=rf"{name}: vaderSentiment is not installed; run: pip .*\[train\]"):
        load_reward(RewardConfig(function=f"ivg.rewards.{name}"))


def test_bitsandbytes_is_looked_for_before_weights_are_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"4bit: bitsandbytes is not installed; .*\[quantization\]"):
        inspect_model(ModelConfig(path="a/name", quantization="4bit"), "base")
