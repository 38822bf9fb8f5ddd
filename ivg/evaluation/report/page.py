"""Write a report's sections as one HTML page that stands alone, and as Markdown with figures beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from ivg.evaluation.report.figures import MINUS, data_uri, label, save_png
from ivg.evaluation.report.samples import Answer, Sample
from ivg.evaluation.report.sections import Section

BLUE, ORANGE = "0, 114, 178", "213, 94, 0"
NUM_DROPPED = 3  # dropped candidates in sight; the others unfold


def html(title: str, sections: Sequence[Section]) -> str:
    """Return the page: no script, no request to anywhere, figures inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("page.html.jinja")
    helpers = {"data_uri": data_uri, "label": label, "shade": shade, "typeset": typeset, "describe": describe}
    return template.render(
        title=title, sections=sections, num_dropped=NUM_DROPPED, shown_open=most_boundaries, **helpers
    )


def shade(strength: float) -> str:
    """Return a background colour: blue above 0, orange below, paler towards it."""
    return f"rgba({BLUE if strength > 0 else ORANGE}, {0.6 * abs(strength):.2f})"


def typeset(cell: object) -> str:
    """Write numbers below zero with a minus sign instead of a hyphen."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", MINUS, str(cell))


def describe(figure: Figure) -> str:
    """Say in words what a figure shows, for those who cannot see it: axes, methods and caption."""
    (axes,) = figure.axes
    legend = axes.get_legend() or next(iter(figure.legends), None)
    names = [text.get_text() for text in (legend.get_texts() if legend else axes.get_yticklabels())]
    y = f"{axes.get_ylabel()} against " if axes.get_ylabel() else ""
    parts = [f"Chart: {y}{axes.get_xlabel()}", ", ".join(names), figure.get_supxlabel()]
    return " ".join(". ".join(part.rstrip(".") for part in parts if part).split()) + "."


def most_boundaries(sample: Sample) -> Answer | None:
    """Return the answer that shows the most of chunk guidance, the last of several; None if none does."""
    ranked = [answer for answer in sample.answers if answer.boundaries]
    return max(reversed(ranked), key=lambda answer: len(answer.boundaries), default=None)


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Return the report as Markdown, writing its figures to `folder`/figures."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
        for name, figure in section.figures.items():
            save_png(figure, folder / "figures" / f"{name}.png")
            parts.append(f"![{describe(figure)}](figures/{name}.png)")
        for table in section.tables:
            parts += [f"### {table.title}", table.markdown()]
        parts += [_sample_markdown(sample) for sample in section.samples]
        parts += section.notes
    return "\n\n".join(parts) + "\n"


def _sample_markdown(sample: Sample) -> str:
    lines = [f"> {' '.join(sample.prompt.split())}", ""]
    for answer in sample.answers:
        value = "" if answer.value is None else f" (value {answer.value:+.3f})"
        lines.append(f"- **{label(answer.method)}**{value}: {' '.join(answer.text.split())}")
        lines += _dropped_markdown(answer)
    return "\n".join(lines)


def _dropped_markdown(answer: Answer) -> list[str]:
    """List the best candidate that each boundary dropped, where chunks were ranked."""
    lines = []
    for number, (kept, dropped) in enumerate(answer.boundaries, start=1):
        if kept and dropped:
            lines.append(
                f"  - boundary {number}: kept {kept[0]['value']:+.3f} `{_code(kept[0]['text'])}`, "
                f"dropped {len(dropped)}, the best {dropped[0]['value']:+.3f} `{_code(dropped[0]['text'])}`"
            )
    return lines


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
