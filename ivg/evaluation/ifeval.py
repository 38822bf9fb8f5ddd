"""IFEval: does a response follow instructions that a program can check? No judge, no network.

The checkers are lm-evaluation-harness's (`pip install 'lm-eval[ifeval]'`); the prompts are the user's to
fetch, the JSONL of the Hub dataset `google/IFEval`. See arXiv 2311.07911.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from ivg.errors import UserError, first_line, readable
from ivg.evaluation.measures.decoded import Decoded
from ivg.evaluation.measures.statistics import CONFIDENCE, estimate_rate
from ivg.evaluation.reading import read_json_lines

# From a prompt and a response to verdicts: `prompt_level_*`, and `inst_level_*` for each instruction.
Checker = Callable[[Mapping[str, Any], Sequence[str]], Mapping[str, Any]]

WANTED = "IFEval's JSONL: key, prompt, instruction_id_list and kwargs in each line"
MODULE = "lm_eval.tasks.ifeval.utils"


def load_checker() -> Checker:
    """Import the checkers, after looking for the data that they read.

    Raises:
        UserError: a package or nltk's data is missing.
    """
    try:
        nltk = importlib.import_module("nltk")
        nltk.data.find("tokenizers/punkt_tab")  # importing the checkers without it asks the network
        # It guesses the language of a response with random numbers: the same ones each time.
        importlib.import_module("langdetect").DetectorFactory.seed = 0
        checker: Checker = importlib.import_module(MODULE).process_results
    except ImportError as error:
        raise UserError(
            f"IFEval's checkers cannot be imported ({first_line(error)}); run: pip install 'lm-eval[ifeval]'"
        ) from error
    except LookupError as error:
        raise UserError(
            "IFEval's checkers split sentences with nltk's data, which is not here; run once, online: "
            "python -m nltk.downloader punkt_tab"
        ) from error
    return checker


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Read IFEval's prompts.

    Raises:
        UserError: not such a file, or a prompt that occurs twice.
    """
    prompts = []
    for where, row in read_json_lines(Path(path), WANTED):
        ids, kwargs = (
            (row.get(n) for n in ("instruction_id_list", "kwargs")) if _is_row(row) else (None, None)
        )
        is_complete = isinstance(ids, list) and isinstance(kwargs, list) and 0 < len(ids) == len(kwargs)
        are_named = is_complete and all(isinstance(name, str) for name in ids or ())
        if not are_named or not all(isinstance(each, Mapping) for each in kwargs or ()):
            raise UserError(f"{where}: no prompt with its instructions; give {WANTED}")
        prompts.append(row)
    if not prompts:
        raise UserError(f"{path}: no prompts; give {WANTED}")
    _require_once([row["prompt"] for row in prompts], str(path))
    return prompts


def _is_row(row: Any) -> bool:
    return isinstance(row, Mapping) and isinstance(row.get("prompt"), str) and "key" in row


def measure_ifeval(decoded: Decoded, prompts: Sequence[Mapping[str, Any]], check: Checker) -> dict[str, Any]:
    """Check every response.

    Args:
        decoded: one response to each prompt.
        prompts: as `read_prompts` returned them.
        check: the checkers.

    Returns:
        JSON data: `prompt_strict`, `prompt_loose`, `instruction_strict` and `instruction_loose`: accuracy
        with its interval, and n prompts.

    Raises:
        UserError: a prompt without a response, with several, or one that is not IFEval's.
    """
    answered = [_prompt_of(row, decoded.name) for row in decoded.rows]
    _require_once(answered, decoded.name)
    responses = dict(zip(answered, decoded.responses, strict=True))
    missing = [row["prompt"] for row in prompts if row["prompt"] not in responses]
    if missing:
        raise UserError(
            f"{decoded.name}: {len(missing)} of {len(prompts)} prompts have no response, such as "
            f"{missing[0]!r:.60}; decode them all"
        )
    odd = responses.keys() - {row["prompt"] for row in prompts}
    if odd:
        raise UserError(f"{decoded.name}: {min(odd)!r:.60} is not among the prompts; decode those alone")
    verdicts = [_check(check, row, responses[row["prompt"]]) for row in prompts]
    found: dict[str, Any] = {}
    for kind in ("strict", "loose"):
        by_prompt = [float(verdict[f"prompt_level_{kind}_acc"]) for verdict in verdicts]
        by_instruction = [verdict[f"inst_level_{kind}_acc"] for verdict in verdicts]
        found[f"prompt_{kind}"] = estimate_rate(by_prompt).as_dict()
        found[f"instruction_{kind}"] = instruction_rate(by_instruction)
    return found


def _check(check: Checker, prompt: Mapping[str, Any], response: str) -> Mapping[str, Any]:
    where = f"prompt {prompt['key']!r:.40}"
    with readable(f"{where}: IFEval's checkers do not take its kwargs"):
        try:
            return check(prompt, [response])
        except KeyError as error:
            raise UserError(
                f"{where}: the installed lm-eval knows no instruction {error}; give {WANTED}"
            ) from error


def _prompt_of(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row.get("prompt"), str):
        raise UserError(f"{name}: a row has no text 'prompt'; decode IFEval's prompts as they are")
    return str(row["prompt"])


def instruction_rate(followed: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Return the share of all instructions followed, with an interval over prompts.

    A prompt's instructions stand or fall together, so that the variance is that of a ratio of sums over n
    prompts: n / (n − 1) · Σ (y_i − r m_i)² / (Σ m_i)², for y_i of m_i instructions followed.

    Args:
        followed: by prompt, whether each of its instructions was followed.
    """
    n, total = len(followed), sum(map(len, followed))
    rate = sum(map(sum, followed)) / total
    if n == 1:
        return {"mean": rate, "ci95": [None, None], "n": 1, "num_instructions": total}
    squares = sum((sum(each) - rate * len(each)) ** 2 for each in followed)
    stderr = math.sqrt(n / (n - 1) * squares) / total
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, df=n - 1)) * stderr
    interval = [max(0.0, rate - half_width), min(1.0, rate + half_width)]
    return {"mean": rate, "stderr": stderr, "ci95": interval, "n": n, "num_instructions": total}


def _require_once(texts: Sequence[str], where: str) -> None:
    twice, count = Counter(texts).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: prompt {twice!r:.60} occurs {count} times; give each once")
