"""The `ivg-convert-value` command: flags and folders are checked before torch is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ivg.errors import exit_on_user_error
from ivg.models.folders import check_conversion
from ivg.run import console


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Convert a checkpoint from the command line."""
    parser = argparse.ArgumentParser(
        prog="ivg-convert-value",
        description="Checkpoints of the paper's authors become stock classifiers.",
    )
    parser.add_argument("source", help="folder of a token-reward checkpoint (score_head.weight)")
    parser.add_argument("destination", help="folder to write")
    console.add_flags(parser, json=False)
    given = parser.parse_args(arguments)
    console.set_up(quiet=given.quiet, verbose=given.verbose)
    check_conversion(given.source, given.destination)
    from ivg.training.value.convert import convert_value

    convert_value(given.source, given.destination)
