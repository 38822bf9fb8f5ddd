"""AlpacaEval 2: decode its instructions guided and unguided; a judge compares both with the reference.

    ivg eval alpaca --config recipes/tulu/alpaca.yaml
    ivg eval alpaca --outputs results/mine/model_outputs.json --output runs/alpaca
    ivg eval alpaca --outputs base.json guided.json --direct --output runs/alpaca

Every answer of the judge is kept in OUTPUT/judge_answers.jsonl as it arrives: run the same command again
after an interruption and only what is missing is asked (and paid) for; only a call that was on its way when
the process was killed may be made twice.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ivg.errors import EXIT_INTERRUPTED, UserError, exit_on_user_error, needs

with needs("eval"):
    from rich.console import Console

    from ivg.evaluation.alpaca import direct, files, judge_quality, win_rates
    from ivg.evaluation.alpaca.annotators import (
        OFFICIAL_ANNOTATOR,
        Annotations,
        Annotator,
        annotate,
        find_annotator,
        in_given_order,
    )
    from ivg.evaluation.alpaca.asking import JudgeOptions, ask_when_agreed, check_judge_options
    from ivg.evaluation.alpaca.both_orders import BothOrders, annotate_both_orders, ask_both_orders
    from ivg.evaluation.alpaca.files import Output
    from ivg.evaluation.alpaca.judge import Answers
    from ivg.evaluation.alpaca.systems import decode_systems, default_name, how_decoded
    from ivg.evaluation.alpaca.view import direct_table, notes, paired_rates_table, rates_table
    from ivg.evaluation.options import option, parse_options
    from ivg.evaluation.output_folder import OutputFolder, check_name, open_output
    from ivg.evaluation.printing import show
    from ivg.evaluation.report.tables import Table
    from ivg.evaluation.safe_text import say

console = Console(stderr=True)  # costs, and what becomes of an interruption; the result goes to stdout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(JudgeOptions):
    """What to judge, by whom."""

    output: str = option("", "folder for outputs, answers, annotations and results")
    decode: str | None = option(
        None, "YAML of ivg-decode: its guided run and the same run unguided are judged"
    )
    name: str | None = option(None, "generator name of the guided run; default: the YAML's folder")
    outputs: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "instead of decoding: model_outputs.json files"}
    )
    reference: str | None = option(None, "reference answers (model_outputs.json); default: from the Hub")
    leaderboard: list[str] = dataclasses.field(
        default_factory=lambda: ["gpt4_1106_preview", "Meta-Llama-3-8B-Instruct", "alpaca-7b"],
        metadata={"help": "rows of the public leaderboard to show"},
    )
    both_orders: bool = option(False, "ask about each pair in both orders; the preference is their mean")
    direct: bool = option(False, "also compare the last generator with the first, in both orders")
    judge_quality: str | None = option(
        None, "judge.json of `ivg eval judge`: shows leaderboard rows beside the rates of another judge"
    )
    submission: bool = option(False, "write the folder that a leaderboard pull request needs")
    pretty_name: str | None = option(None, "name on the leaderboard")
    link: str | None = option(None, "where the model is described, for the leaderboard")


def check(options: Options) -> None:
    """Find contradictions before anything is read."""
    if not options.output:
        raise UserError("no output folder; give --output")
    if bool(options.outputs) == bool(options.decode):
        raise UserError("give either --decode (a recipe to run) or --outputs (files to judge)")
    check_judge_options(options)
    if options.direct and len(options.outputs) == 1:
        raise UserError("--direct compares two generators; give two files of --outputs, or --decode")
    if options.decode:
        check_name(system_name(options), "--name", reserved=files.OWN_NAMES)
    if options.submission and not (options.decode and options.link and options.pretty_name):
        raise UserError("--submission needs --decode, --pretty_name and --link; it records all of them")
    other_judge = options.annotator != OFFICIAL_ANNOTATOR or options.judge_model or options.both_orders
    if options.submission and other_judge:
        raise UserError(
            "--submission needs the leaderboard's judge; leave out --annotator, --judge_model, --both_orders"
        )


def system_name(options: Options) -> str:
    """Return the generator name of the guided run."""
    return options.name if options.name is not None else default_name(str(options.decode))


def check_leaderboards(annotator: Annotator, reference: list[Output]) -> None:
    """Refuse to make a submission with another judge or reference, before anything is decoded for it."""
    other = win_rates.why_not_comparable(annotator, reference)
    if other:
        raise UserError(f"--submission needs the leaderboard's judge and reference, but {other}")


class Judged(NamedTuple):
    """What the judge was asked.

    Attributes:
        annotations: by system.
        direct: the last system compared with the first (see `direct.compare_outputs`); None unless asked for.
        endpoint: the URL that was asked.
    """

    annotations: dict[str, Annotations]
    direct: dict[str, Any] | None
    endpoint: str


def judge_systems(
    systems: dict[str, list[Output]],
    reference: list[Output],
    annotator: Annotator,
    options: Options,
    output: OutputFolder,
) -> Judged:
    """Have every system judged, after the cost of what is not answered yet was agreed to."""
    in_order = list(systems.values())
    first, last = in_order[0], in_order[-1]
    asks_both = options.direct or options.both_orders
    fixed = in_given_order(annotator, output) if asks_both else annotator

    def questions(
        answers: Answers, *, show_progress: bool
    ) -> tuple[dict[str, Annotations], BothOrders | None]:
        work: dict[str, Any] = {
            "num_workers": options.num_workers,
            "output": output,
            "show_progress": show_progress,
        }
        annotations = {
            name: annotate_both_orders(outputs, reference, fixed, answers, **work)
            if options.both_orders
            else annotate(outputs, reference, annotator, answers, **work)
            for name, outputs in systems.items()
        }
        return annotations, ask_both_orders(last, first, fixed, answers, **work) if options.direct else None

    (annotations, both), endpoint = ask_when_agreed(questions, annotator, options, output, console)
    for name, rows in annotations.items():
        output.write_json(rows, name, "annotations.json")
    return Judged(annotations, None if both is None else direct.compare_outputs(last, first, both), endpoint)


def tabulate(report: dict[str, Any]) -> list[Table | None]:
    """Return the tables of rates."""
    return [rates_table(report), paired_rates_table(report), direct_table(report)]


def submit(
    outputs: list[Output],
    reference: list[Output],
    annotations: Annotations,
    options: Options,
    output: OutputFolder,
) -> None:
    """Write the folder for the leaderboard."""
    folder = files.write_submission(
        output, outputs, reference, annotations,
        annotator=OFFICIAL_ANNOTATOR, pretty_name=str(options.pretty_name), link=str(options.link),
        **how_decoded(str(options.decode)),
    )  # fmt: skip
    say(console, f"submission: {folder}")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Decode, judge, report."""
    options = parse_options(Options, argv, __doc__ or "")
    check(options)
    with open_output(options.output, "alpaca.json", "{") as output:
        evaluate(options, output)


def evaluate(options: Options, output: OutputFolder) -> None:
    """Do all of it in a folder that no other evaluation uses now."""
    reference = files.read_outputs(options.reference) if options.reference else win_rates.hub_reference()
    leaderboard = win_rates.leaderboard(options.leaderboard)
    annotator = find_annotator(options.annotator, options.judge_model, output)
    quality = judge_quality.read_quality(options.judge_quality, annotator)
    if options.submission:
        check_leaderboards(annotator, reference)
    if options.decode:
        systems = decode_systems(options.decode, system_name(options), reference, output)
    else:
        systems = files.read_systems(options.outputs, reference)
    name = list(systems)[-1]
    if options.submission:
        files.check_submission(systems[name], reference)  # before the judge is paid
    try:
        judged = judge_systems(systems, reference, annotator, options, output)
    except KeyboardInterrupt:
        say(console, "interrupted; every answer so far is kept, run again to go on")
        sys.exit(EXIT_INTERRUPTED)
    report = win_rates.sum_up(
        judged.annotations, annotator, reference, judged.endpoint, may_download=options.reference is None
    )
    if options.both_orders:
        report["not_comparable"] = report["not_comparable"] or "each pair was asked in both orders"
    if judged.direct is not None:
        report["direct"] = judged.direct
    report["judge_quality"] = quality
    report["leaderboard"] = leaderboard if annotator.is_official or quality else {}
    output.write_json(report, "alpaca.json")
    show(report, tabulate(report), notes(report), as_json=options.json)
    if options.submission:
        submit(systems[name], reference, judged.annotations[name], options, output)


if __name__ == "__main__":
    main()
