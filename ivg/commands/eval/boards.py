"""Answers for other leaderboards, written as those read them: Arena-Hard v2, MT-Bench, JudgeArena.

    ivg eval boards --board arena-hard --first runs/arena.jsonl --name mine --output runs/boards
    ivg eval boards --board mt-bench --questions question.jsonl --output runs/boards
    ivg eval boards --board mt-bench --questions question.jsonl --first runs/turn_1.jsonl --output ...
    ivg eval boards --board mt-bench --questions question.jsonl --first runs/turn_1.jsonl \
        --second runs/turn_2.jsonl --name mine --output runs/boards
    ivg eval boards --board judgearena --questions alpaca-eval.csv --output runs/boards
    ivg eval boards --board judgearena --questions alpaca-eval.csv --first runs/answers.jsonl \
        --name mine --output runs/boards

Decode Arena-Hard v2's question.jsonl as it is. MT-Bench is decoded turn by turn: without --first the prompts
of the first turn are written, with it those of the second, and with both turns the answers. For JudgeArena
(its tables/instructions/NAME.csv), prompts are written without --first, and with it the table of answers
whose path `judgearena.evaluate.evaluate_completions` takes as `method_A` or `method_B`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ivg.errors import UserError, exit_on_user_error, needs

with needs("eval"):
    import tiktoken

    from ivg.evaluation.boards import arena_hard_answers, mt_bench_answers, read_questions, turn_prompts
    from ivg.evaluation.judge_arena import (
        as_parquet,
        instruction_prompts,
        judge_arena_answers,
        read_instructions,
    )
    from ivg.evaluation.measures.decoded import Decoded, read_decoded
    from ivg.evaluation.options import CommandOptions, option, parse_options
    from ivg.evaluation.output_folder import check_name, open_output
    from ivg.evaluation.printing import show

Rows = list[dict[str, Any]]
Place = tuple[str, ...]  # folders and file name within the output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """Which board, and the decoded answers."""

    board: str = option("", "arena-hard, judgearena or mt-bench")
    first: str | None = option(None, "decoded answers; for mt-bench those to the first turn")
    second: str | None = option(None, "mt-bench: decoded answers to the second turn")
    questions: str | None = option(None, "mt-bench: its question.jsonl; judgearena: its instructions' CSV")
    name: str = option("", "name of the model on the board")
    output: str = option("", "folder for prompts and answers")
    own_token_counts: bool = option(
        False, "arena-hard: count tokens of the decoding model, not those of gpt-4o's vocabulary"
    )


def check(options: Options) -> None:
    """Find contradictions before anything is read."""
    if options.board not in BOARDS:
        raise UserError(f"board is {options.board!r}; give one of {', '.join(BOARDS)}")
    if not options.output:
        raise UserError("no output folder; give --output")
    if options.board == "arena-hard":
        if options.first is None or options.second is not None or options.questions is not None:
            raise UserError("arena-hard takes one decoded file: give --first, and no --second or --questions")
    elif options.questions is None or (options.second is not None and options.first is None):
        raise UserError(f"{options.board} needs --questions, and --first before --second")
    if options.board == "judgearena" and options.second is not None:
        raise UserError("judgearena takes one decoded file; leave out --second")
    if options.own_token_counts and options.board != "arena-hard":
        raise UserError(f"{options.board} counts no tokens; leave out --own_token_counts")
    if options.second is not None or (options.board != "mt-bench" and options.first is not None):
        check_name(options.name, "name")


def gpt_4o_counter() -> Callable[[str], int]:
    """Return what counts tokens as the board does.

    Raises:
        UserError: that vocabulary is not on this machine and cannot be fetched.
    """
    try:
        encoding = tiktoken.encoding_for_model("gpt-4o")
    except OSError as error:  # requests' errors are such
        raise UserError(
            "gpt-4o's vocabulary, by which the board counts tokens, cannot be fetched here; set "
            "TIKTOKEN_CACHE_DIR to a folder that holds it, or give --own_token_counts"
        ) from error
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def own_counter(decoded: Decoded) -> Callable[[str], int]:
    """Return what looks an answer's length up in its row."""
    counts: dict[str, Any] = {row["response"]: row.get("num_tokens") for row in decoded.rows}
    if None in counts.values():
        raise UserError(f"{decoded.path}: a row has no num_tokens; leave out --own_token_counts")
    return lambda text: int(counts[text])


def arena_hard(options: Options, first: Decoded | None) -> tuple[Rows, Place]:
    """Make Arena-Hard v2's answers."""
    assert first is not None  # as `check` saw to
    counter = own_counter(first) if options.own_token_counts else gpt_4o_counter()
    return arena_hard_answers(first, options.name, counter), ("model_answer", f"{options.name}.jsonl")


def mt_bench(options: Options, first: Decoded | None) -> tuple[Rows, Place]:
    """Make the prompts of MT-Bench's next turn, or the answers to both."""
    questions = read_questions(str(options.questions))
    if first is None:
        return turn_prompts(questions), ("turn_1_prompts.jsonl",)
    if options.second is None:
        return turn_prompts(questions, first), ("turn_2_prompts.jsonl",)
    second = read_decoded("second turn", options.second)
    rows = mt_bench_answers(questions, first, second, options.name)
    return rows, ("model_answer", f"{options.name}.jsonl")


def judgearena(options: Options, first: Decoded | None) -> tuple[Rows, Place]:
    """Make JudgeArena's prompts, or its table of answers."""
    instructions = read_instructions(str(options.questions))
    if first is None:
        return instruction_prompts(instructions), ("judgearena_prompts.jsonl",)
    rows = judge_arena_answers(instructions, first, options.name)
    return rows, ("judgearena", f"{options.name}.parquet")


BOARDS = {"arena-hard": arena_hard, "judgearena": judgearena, "mt-bench": mt_bench}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read answers, write what the board or the next turn needs."""
    options = parse_options(Options, argv, __doc__ or "")
    check(options)
    first = None if options.first is None else read_decoded("first turn", options.first)
    rows, place = BOARDS[options.board](options, first)
    with open_output(options.output, place[-1], "{") as output:
        if place[-1].endswith(".parquet"):
            written = output.write_bytes(as_parquet(rows), *place)
        else:
            written = output.write_json_lines(rows, *place)
    show(
        {"written": str(written), "num_rows": len(rows)},
        (),
        [f"{len(rows)} rows: {written}"],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
