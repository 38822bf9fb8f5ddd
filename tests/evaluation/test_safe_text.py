"""What models and users wrote is shown as it stands, and steers nothing."""

import io

from rich.console import Console

from ivg.evaluation.safe_text import say


def test_a_line_is_printed_as_it_is():
    """Rich takes `[/b]` in a path for markup and ends the evaluation, or `:smile:` for a picture."""
    shown = io.StringIO()
    say(Console(file=shown, width=200, force_terminal=True), "runs/[/b] [red]:smile: 12 \x1b[2J")
    assert shown.getvalue() == "runs/[/b] [red]:smile: 12 \\x1b[2J\n"
