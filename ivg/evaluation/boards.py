"""Files of other leaderboards: answers as Arena-Hard v2 and MT-Bench read them.

Both boards keep `model_answer/NAME.jsonl`. Arena-Hard v2 wants a conversation for each `uid`, with the counts
that its style control reads; MT-Bench wants the answers to both turns of a question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.errors import UserError
from ivg.evaluation.measures.decoded import Decoded
from ivg.evaluation.reading import read_json_lines

QUESTIONS = "MT-Bench's question.jsonl"
NUM_TURNS = 2
CODE_BLOCK = re.compile(r"```[^`]*```")
HEADERS = {f"h{level}": re.compile(rf"^#{{{level}}}\s", re.MULTILINE) for level in range(1, 7)}
LISTS = {
    "ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE),
    "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE),
}
BOLDS = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}


def arena_hard_answers(
    decoded: Decoded, name: str, count_tokens: Callable[[str], int]
) -> list[dict[str, Any]]:
    """Return answers as Arena-Hard v2 reads them.

    Args:
        decoded: what `ivg decode` made of the board's question.jsonl; its rows keep `uid` and `prompt`.
        name: of the model.
        count_tokens: tokens of an answer; the board counts those of gpt-4o's vocabulary.

    Raises:
        UserError: a row without a text `uid` or `prompt`, or a uid that occurs twice.
    """
    for number, row in enumerate(decoded.rows, start=1):
        lacking = [key for key in ("uid", "prompt") if not isinstance(row.get(key), str)]
        if lacking:
            raise UserError(
                f"{decoded.path}, row {number}: no text {lacking[0]!r}; decode Arena-Hard v2's question.jsonl"
            )
    require_once([row["uid"] for row in decoded.rows], f"{decoded.path}: uid")
    return [
        {
            "uid": row["uid"],
            "ans_id": f"{name}-{row['uid']}",
            "model": name,
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": {"answer": row["response"]}},
            ],
            "metadata": {"token_len": count_tokens(row["response"]), **count_markdown(row["response"])},
        }
        for row in decoded.rows
    ]


def count_markdown(text: str) -> dict[str, dict[str, int]]:
    """Count headers, list items and bold passages outside of code blocks."""
    prose = CODE_BLOCK.sub("", text)
    groups = {"header_count": HEADERS, "list_count": LISTS, "bold_count": BOLDS}
    return {
        name: {kind: len(pattern.findall(prose)) for kind, pattern in patterns.items()}
        for name, patterns in groups.items()
    }


def read_questions(path: str | Path) -> list[dict[str, Any]]:
    """Read MT-Bench's questions: `question_id` and two `turns` each.

    Raises:
        UserError: not such a file, or a question that occurs twice.
    """
    questions = []
    for where, row in read_json_lines(Path(path), QUESTIONS):
        turns = row.get("turns") if isinstance(row, Mapping) else None
        is_complete = isinstance(turns, list) and all(isinstance(turn, str) for turn in turns)
        if not is_complete or len(turns or ()) != NUM_TURNS or not isinstance(row.get("question_id"), int):
            raise UserError(f"{where}: expected question_id and {NUM_TURNS} turns; give {QUESTIONS}")
        questions.append(row)
    if not questions:
        raise UserError(f"{path}: no questions; give {QUESTIONS}")
    require_once([row["question_id"] for row in questions], f"{path}: question_id")
    return questions


def turn_prompts(questions: Sequence[Mapping[str, Any]], *answered: Decoded) -> list[dict[str, Any]]:
    """Return the prompts of MT-Bench's next turn, for `ivg decode`.

    Args:
        questions: the board's.
        answered: the decoded first turn, for the second turn's prompts; none for the first's.

    Raises:
        UserError: a question that the decoded turn lacks.
    """
    answers = [_by_question(decoded, questions) for decoded in answered]
    return [
        {
            "id": str(question["question_id"]),
            "question_id": question["question_id"],
            "messages": _conversation(question, [by_id[question["question_id"]] for by_id in answers]),
        }
        for question in questions
    ]


def _conversation(question: Mapping[str, Any], answers: Sequence[str]) -> list[dict[str, str]]:
    messages = []
    for turn, answer in zip(question["turns"], answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question["turns"][len(answers)]}]


def mt_bench_answers(
    questions: Sequence[Mapping[str, Any]], first: Decoded, second: Decoded, name: str
) -> list[dict[str, Any]]:
    """Return answers as MT-Bench reads them, in the questions' order.

    Raises:
        UserError: a question that one of the turns lacks, or a second turn that follows other answers than
            those of `first`.
    """
    turns = [_by_question(decoded, questions) for decoded in (first, second)]
    asked = {row["question_id"]: row.get("messages") for row in second.rows}
    for prompt in turn_prompts(questions, first):
        if asked[prompt["question_id"]] != prompt["messages"]:
            raise UserError(
                f"{second.path}: question {prompt['question_id']} does not go on from the answer in "
                f"{first.path}; decode the second turn from that file's prompts"
            )
    return [
        {
            "question_id": question["question_id"],
            "answer_id": f"{name}-{question['question_id']}",
            "model_id": name,
            "choices": [{"index": 0, "turns": [by_id[question["question_id"]] for by_id in turns]}],
        }
        for question in questions
    ]


def _by_question(decoded: Decoded, questions: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    ids = [row.get("question_id") for row in decoded.rows]
    if not all(isinstance(name, int) for name in ids):
        raise UserError(f"{decoded.path}: a row has no question_id; decode the prompts that were written")
    require_once(ids, f"{decoded.path}: question_id")
    missing = [q["question_id"] for q in questions if q["question_id"] not in ids]
    if missing:
        raise UserError(
            f"{decoded.path}: {len(missing)} of {len(questions)} questions are missing, such as "
            f"{missing[0]}; decode them all"
        )
    return {row["question_id"]: row["response"] for row in decoded.rows}


def require_once(ids: Sequence[Any], what: str) -> None:
    """Refuse ids of which one occurs twice.

    Raises:
        UserError: names it.
    """
    twice, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"{what} {twice!r:.60} occurs {count} times; give each once")
