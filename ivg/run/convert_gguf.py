"""`ivg convert-gguf`: a GGUF file becomes a model folder.

What is wrong with the arguments is said before torch is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ivg.models.folders import require_gguf, require_new_folder
from ivg.run import console


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert a file from the command line.

    Raises:
        UserError: see `ivg.models.gguf.convert_gguf`.
    """
    parser = argparse.ArgumentParser(
        prog="ivg convert-gguf",
        description="Write the language model of a GGUF file as a folder that every command reads.",
    )
    parser.add_argument("source", help="the .gguf file")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights written; 16 bits halve the folder and round them (default: float32)",
    )
    console.add_flags(parser, json=False)
    given = parser.parse_args(arguments)
    console.set_up(quiet=given.quiet, verbose=given.verbose)
    require_gguf(given.source)
    require_new_folder(given.destination)
    from ivg.models.gguf import convert_gguf

    num_parameters = convert_gguf(given.source, given.destination, dtype=given.dtype)
    sys.stdout.write(f"{given.destination}: {num_parameters:,} parameters in {given.dtype}\n")
