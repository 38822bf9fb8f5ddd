"""Turn a folder of results into report.md and one HTML page that stands alone.

    python eval/report.py --folder runs/quickstart

Reads what is there of report.json (or gold_reward.json), sweep.json, speed.json and alpaca.json, in the
folder or one below, and decoded/<method>.jsonl with <method>.trace.jsonl of `ivg-decode --trace`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ivg.errors import UserError, exit_on_user_error, needs

with needs("eval"):
    from ivg.evaluation.options import option, parse_options
    from ivg.evaluation.report.page import html, markdown
    from ivg.evaluation.report.sections import collect


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
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
    output = Path(options.output) if options.output else folder
    title = options.title or f"Guided decoding: {folder.resolve().name}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.md").write_text(markdown(title, sections, output), encoding="utf-8")
        (output / "report.html").write_text(html(title, sections), encoding="utf-8")
    except OSError as error:
        raise UserError(f"output {output}: {error.strerror}; give a folder that can be written") from error
    print(f"{output / 'report.html'} and {output / 'report.md'}: {', '.join(s.title for s in sections)}")


if __name__ == "__main__":
    main()
