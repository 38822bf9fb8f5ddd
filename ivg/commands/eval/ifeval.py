"""IFEval of decoded files: strict and loose accuracy, by prompt and by instruction. No judge is asked.

    ivg eval ifeval --prompts ifeval_input_data.jsonl --files base=runs/base.jsonl ivg=runs/ivg.jsonl \
        --output runs/ifeval.json

Needs `pip install 'lm-eval[ifeval]'` and nltk's punkt_tab, both once; then it works offline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ivg.errors import UserError, exit_on_user_error, needs

with needs("eval"):
    from ivg.evaluation.ifeval import load_checker, measure_ifeval, read_prompts
    from ivg.evaluation.measures.decoded import read_named
    from ivg.evaluation.options import CommandOptions, option, parse_options
    from ivg.evaluation.output_folder import open_result
    from ivg.evaluation.printing import show
    from ivg.evaluation.report.tables import ifeval_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """The prompts, and who answered them."""

    prompts: str = option("", "IFEval's prompts with their instructions, JSONL")
    files: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "decoded files as NAME=FILE.jsonl"}
    )
    output: str | None = option(None, "write the numbers there as JSON")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read, check, report."""
    options = parse_options(Options, argv, __doc__ or "")
    if not options.prompts:
        raise UserError("no prompts; give --prompts: IFEval's JSONL, from the Hub dataset google/IFEval")
    files, prompts = read_named(options.files), read_prompts(options.prompts)
    with open_result(options.output, ("ifeval",)) as write:
        check = load_checker()
        report = {"ifeval": {file.name: measure_ifeval(file, prompts, check) for file in files}}
        write(report)
    show(report, [ifeval_table(report)], as_json=options.json)


if __name__ == "__main__":
    main()
