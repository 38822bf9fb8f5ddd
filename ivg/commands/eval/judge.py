"""How good is a judge? It is asked about comparisons that another judge has answered before.

    ivg eval judge --recordings results/ --judge_model MODEL --endpoint http://localhost:8000/v1 \
        --output runs/judge

Recordings are AlpacaEval's annotations.json, one for each system. Each comparison is asked in both orders,
and the first order again. Read what comes out before you believe a win rate of this judge. Answers are kept
as they arrive; run the same command again after an interruption.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from ivg.errors import EXIT_INTERRUPTED, UserError, exit_on_user_error, needs

with needs("eval"):
    import numpy as np
    from rich.console import Console

    from ivg.evaluation.alpaca.annotators import Annotator, annotate, find_annotator, in_given_order
    from ivg.evaluation.alpaca.asking import JudgeOptions, ask_when_agreed, check_judge_options
    from ivg.evaluation.alpaca.both_orders import ask_both_orders, shares
    from ivg.evaluation.alpaca.judge import Again, Answers
    from ivg.evaluation.alpaca.judge_quality import Asked, measure_judge
    from ivg.evaluation.alpaca.judge_view import judge_notes, judge_table, systems_table
    from ivg.evaluation.alpaca.recordings import Recording, read_recordings, sample_instructions
    from ivg.evaluation.options import option, parse_options
    from ivg.evaluation.output_folder import OutputFolder, open_output
    from ivg.evaluation.printing import show
    from ivg.evaluation.safe_text import say

MAX_REPEATS = 100  # each is one more call for every comparison
console = Console(stderr=True)  # costs, and what becomes of an interruption; the result goes to stdout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(JudgeOptions):
    """Which judge, and what it is asked about."""

    output: str = option("", "folder for answers and results")
    recordings: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "annotations.json files, or folders that hold some"}
    )
    num_instructions: int | None = option(None, "ask about so many instructions, drawn at random; unset: all")
    repeats: int = option(1, "how often the first order is asked again")
    seed: int = option(0, "of that draw")


def check(options: Options) -> None:
    """Find contradictions before anything is read."""
    if not options.output:
        raise UserError("no output folder; give --output")
    if not options.recordings:
        raise UserError("no recordings; give --recordings: annotations.json files, or folders of them")
    if options.num_instructions is not None and options.num_instructions < 1:
        raise UserError(f"num_instructions is {options.num_instructions}; give an integer >= 1")
    if not 0 <= options.repeats <= MAX_REPEATS:
        raise UserError(f"repeats is {options.repeats}; give an integer from 0 to {MAX_REPEATS}")
    check_judge_options(options)


def ask(
    recordings: Sequence[Recording], annotator: Annotator, options: Options, output: OutputFolder
) -> tuple[Asked, str]:
    """Ask about every comparison, in both orders and again; return the answers and the URL asked."""
    fixed = in_given_order(annotator, output)

    def questions(answers: Answers, *, show_progress: bool) -> Asked:
        work: dict[str, Any] = {
            "num_workers": options.num_workers,
            "output": output,
            "show_progress": show_progress,
        }
        asked = [ask_both_orders(r.answers, r.reference, fixed, answers, **work) for r in recordings]
        again = [
            [
                shares(annotate(r.answers, r.reference, fixed, Again(answers, number), **work))
                for number in range(1, options.repeats + 1)
            ]
            for r in recordings
        ]
        return Asked(
            [r.system for r in recordings for _ in r.answers],
            [row["instruction"] for r in recordings for row in r.answers],
            np.array([share for r in recordings for share in r.shares]),
            np.array([share for both in asked for share in both.reference_first]),
            np.array([share for both in asked for share in both.system_first]),
            np.concatenate(
                [
                    np.array(rows).reshape(options.repeats, len(r.answers)).T
                    for rows, r in zip(again, recordings, strict=True)
                ]
            ),
        )

    return ask_when_agreed(questions, annotator, options, output, console)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read, ask, report."""
    options = parse_options(Options, argv, __doc__ or "")
    check(options)
    recordings = read_recordings(options.recordings)
    if options.num_instructions is not None:
        recordings = sample_instructions(recordings, options.num_instructions, seed=options.seed)
    with open_output(options.output, "judge.json", "{") as output:
        annotator = find_annotator(options.annotator, options.judge_model, output)
        try:
            asked, endpoint = ask(recordings, annotator, options, output)
        except KeyboardInterrupt:
            say(console, "interrupted; every answer so far is kept, run again to go on")
            sys.exit(EXIT_INTERRUPTED)
        report = {
            "judge": {"annotator": annotator.name, "model": annotator.model, "endpoint": endpoint},
            "recorded_judge": recordings[0].judge,
            "num_left_out": sum(recording.num_left_out for recording in recordings),
            **measure_judge(asked),
        }
        output.write_json(report, "judge.json")
    tables = (judge_table(report), systems_table(report))
    show(report, tables, judge_notes(report), as_json=options.json)


if __name__ == "__main__":
    main()
