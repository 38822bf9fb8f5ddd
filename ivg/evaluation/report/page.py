"""Write a report's sections as one HTML page that stands alone, and as Markdown with figures beside it."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from ivg.evaluation.output_folder import writable
from ivg.evaluation.report.figures import MINUS, data_uri, label, read_plain, save_png
from ivg.evaluation.report.samples import Answer, Sample
from ivg.evaluation.report.sections import Section
from ivg.evaluation.safe_text import plain_markdown, visible

BLUE, ORANGE = "0, 114, 178", "213, 94, 0"
PAGE_OPENING = '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'  # as in page.html.jinja
NUM_DROPPED = 3  # dropped candidates in sight; the others unfold


def html(title: str, sections: Sequence[Section]) -> str:
    """Return the page: no script, no request to anywhere, figures inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_show,
    )
    template = environment.get_template("page.html.jinja")
    helpers = {"data_uri": data_uri, "label": label, "shade": shade, "typeset": typeset, "describe": describe}
    return template.render(
        title=title, sections=sections, num_dropped=NUM_DROPPED, shown_open=most_boundaries, **helpers
    )


def _show(shown: object) -> object:
    """Write out control characters, except in what the template itself has made."""
    return visible(shown) if isinstance(shown, str) and not isinstance(shown, Markup) else shown


def shade(strength: float) -> str:
    """Return a background colour: blue above 0, orange below, paler towards it."""
    return f"rgba({BLUE if strength > 0 else ORANGE}, {0.6 * abs(strength):.2f})"


def typeset(cell: object) -> str:
    """Write numbers below zero with a minus sign instead of a hyphen."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", MINUS, str(cell))


def describe(figure: Figure) -> str:
    """Say in words what a figure shows, for those who cannot see it: axes, methods and caption."""
    axes = figure.axes[0]
    legend = axes.get_legend() or next(iter(figure.legends), None)
    names = [text.get_text() for text in (legend.get_texts() if legend else axes.get_yticklabels())]
    y = f"{axes.get_ylabel()} against " if axes.get_ylabel() else ""
    panels = "; ".join(panel.get_xlabel() for panel in figure.axes)
    parts = [f"Chart: {y}{panels}", ", ".join(names), figure.get_supxlabel()]
    said = " ".join(". ".join(part.rstrip(".") for part in parts if part).split()) + "."
    return read_plain(said)


def most_boundaries(sample: Sample) -> Answer | None:
    """Return the answer that shows the most of chunk guidance, the last of several; None if none does."""
    ranked = [answer for answer in sample.answers if answer.boundaries]
    return max(reversed(ranked), key=lambda answer: len(answer.boundaries), default=None)


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Return the report as Markdown, writing its figures to `folder`/figures."""
    parts = [f"# {plain_markdown(title)}"]
    for section in sections:
        parts += [f"## {plain_markdown(section.title)}", *map(plain_markdown, section.text)]
        for name, figure in section.figures.items():
            path = folder / "figures" / f"{name}.png"
            with writable(path):
                save_png(figure, path)
            place = urllib.parse.quote(f"figures/{name}.png")
            parts.append(f"![{plain_markdown(describe(figure))}]({place})")
        for table in section.tables:
            parts += [f"### {plain_markdown(table.title)}", table.markdown()]
        parts += [_write_sample(sample) for sample in section.samples]
        parts += map(plain_markdown, section.notes)
    return "\n\n".join(parts) + "\n"


def _write_sample(sample: Sample) -> str:
    lines = [f"> {plain_markdown(sample.prompt)}", ""]
    for answer in sample.answers:
        value = "" if answer.value is None else f" (value {answer.value:+.3f})"
        lines.append(f"- **{plain_markdown(label(answer.method))}**{value}: {plain_markdown(answer.text)}")
        lines += _write_dropped(answer)
    return "\n".join(lines)


def _write_dropped(answer: Answer) -> list[str]:
    """List the best candidate that each boundary dropped, where chunks were ranked."""
    lines = []
    for number, (kept, dropped) in enumerate(answer.boundaries, start=1):
        if kept and dropped:
            best, other = kept[0], dropped[0]
            lines.append(
                f"  - boundary {number}: kept {best['value']:+.3f} `{_write_code(best['text'])}`, "
                f"dropped {len(dropped)}, the best {other['value']:+.3f} `{_write_code(other['text'])}`"
            )
    return lines


def _write_code(text: str) -> str:
    return " ".join(visible(text.replace("`", "'")).split())
