"""Write a report's sections as one HTML page that stands alone, and as Markdown with figures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from ivg.evaluation.figures import data_uri, label, save_png
from ivg.evaluation.report import Section
from ivg.evaluation.samples import Answer, Sample, is_kept

BLUE, ORANGE = "0, 114, 178", "213, 94, 0"


def html(title: str, sections: Sequence[Section]) -> str:
    """Return the page: no script, no request to anywhere, figures inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("report.html.jinja")
    helpers = {"data_uri": data_uri, "label": label, "shade": shade, "is_kept": is_kept}
    return template.render(title=title, sections=sections, first_open=first_traced, **helpers)


def shade(strength: float) -> str:
    """Return a background colour: blue above 0, orange below, paler towards it."""
    return f"rgba({BLUE if strength > 0 else ORANGE}, {0.6 * abs(strength):.2f})"


def first_traced(sample: Sample) -> int:
    """Return the place of the first answer with chunk candidates, which is shown open; -1 if none has."""
    return next((i for i, answer in enumerate(sample.answers) if answer.chunks), -1)


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Return the report as Markdown, writing its figures to `folder`/figures."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
        for table in section.tables:
            parts += [f"### {table.title}", table.markdown()]
        for name, figure in section.figures.items():
            save_png(figure, folder / "figures" / f"{name}.png")
            parts.append(f"![{name.replace('_', ' ')}](figures/{name}.png)")
        parts += [_sample_markdown(sample) for sample in section.samples]
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
    for number, candidates in enumerate(answer.chunks, start=1):
        kept = [c for c in candidates if is_kept(c)]
        dropped = [c for c in candidates if not is_kept(c)]
        if kept and dropped:
            lines.append(
                f"  - boundary {number}: kept {kept[0]['value']:+.3f} `{_code(kept[0]['text'])}`, "
                f"dropped {len(dropped)}, the best {dropped[0]['value']:+.3f} `{_code(dropped[0]['text'])}`"
            )
    return lines


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
