"""Turn a folder of results into report.md and one HTML page that stands alone.

    ivg eval report --folder runs/quickstart

Reads what is there of report.json (or gold_reward.json), sweep.json, speed.json and alpaca.json, in the
folder or one below, and decoded/<method>.jsonl with <method>.trace.jsonl of `ivg-decode --trace`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ivg.errors import UserError, exit_on_user_error, needs

with needs("eval"):
    from rich.console import Console

    from ivg.evaluation.options import CommandOptions, option, parse_options
    from ivg.evaluation.output_folder import open_output
    from ivg.evaluation.report.page import PAGE_OPENING, html, markdown
    from ivg.evaluation.report.sections import collect
    from ivg.evaluation.safe_text import say
    from ivg.run.console import print_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """What to report."""

    folder: str = option("", "folder of results")
    output: str | None = option(None, "where the report goes; default: the folder itself")
    title: str | None = option(None, "heading; default: the folder's name")
    num_samples: int = option(3, "prompts shown side by side")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw, write."""
    options = parse_options(Options, argv, __doc__ or "")
    if not options.folder:
        raise UserError("no folder; give --folder")
    if options.num_samples < 0:
        raise UserError(f"num_samples is {options.num_samples}; give an integer >= 0")
    folder = Path(options.folder)
    sections = collect(folder, num_samples=options.num_samples)
    title = options.title or f"Guided decoding: {folder.resolve().name}"
    with open_output(options.output or folder, "report.html", PAGE_OPENING) as output:
        for section in sections:
            for name in section.figures:
                output.claim("figures", f"{name}.png")
        output.write_text(markdown(title, sections, output.path), "report.md")
        output.write_text(html(title, sections), "report.html")
        written = [str(output.path / "report.html"), str(output.path / "report.md")]
    titles = [section.title for section in sections]
    if options.json:
        print_json({"written": written, "sections": titles})
    else:
        say(Console(soft_wrap=True), f"{' and '.join(written)}: {', '.join(titles)}")


if __name__ == "__main__":
    main()
