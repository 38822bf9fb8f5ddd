"""Builds the loops for CPUs from C++; everything else about the package is in pyproject.toml.

Where this cannot be built (no C++ compiler, no OpenMP), ivg installs without it and uses torch instead.
"""

import platform

from setuptools import Extension, setup

# Eight numbers at a time; torch itself needs no less to be fast, and `library.py` looks before it loads.
x86_flags = ["-mavx2", "-mfma"] if platform.machine() in ("x86_64", "AMD64") else []

setup(
    ext_modules=[
        Extension(
            "ivg.engines.lockstep.cpu._kernels",
            sources=[
                f"ivg/engines/lockstep/cpu/{name}.cpp" for name in ("activation", "attention", "logits")
            ],
            depends=["ivg/engines/lockstep/cpu/vectors.hpp"],
            extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-Wno-psabi", *x86_flags],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
