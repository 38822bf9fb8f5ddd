"""Builds the attention loop for CPUs and puts the recipes into wheels; everything else is in pyproject.toml.

Wheels are pure Python. The loop is built in a source checkout only, by `pip install -e .` or by
`python setup.py build_ext --inplace`; where it cannot be (no C++ compiler, no OpenMP), torch takes its place.
"""

import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies recipes/ into the wheel as ivg/_recipes; a checkout has them beside the package."""

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "ivg", "_recipes")
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree("recipes", target, ignore=shutil.ignore_patterns("__pycache__"))


# Eight numbers at a time; torch itself needs no less to be fast, and `attention.py` looks before it loads.
x86_flags = ["-mavx2", "-mfma"] if platform.machine() in ("x86_64", "AMD64") else []
loop = Extension(
    "ivg.engines.lockstep.cpu._attention",
    sources=["ivg/engines/lockstep/cpu/attention.cpp"],
    extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-Wno-psabi", *x86_flags],
    extra_link_args=["-fopenmp"],
    optional=True,
)
is_in_place = bool({"editable_wheel", "develop", "build_ext"} & set(sys.argv))
setup(cmdclass={"build_py": BuildWithRecipes}, ext_modules=[loop] if is_in_place else [])
