"""How a judge is asked: who answers, what that costs, and how Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
from collections.abc import Iterator
from typing import Protocol, TypeVar

import openai
from rich.console import Console
from rich.prompt import Confirm

from ivg.errors import UserError
from ivg.evaluation.alpaca.annotators import OFFICIAL_ANNOTATOR, Annotator
from ivg.evaluation.alpaca.answer_cache import AnswerCache
from ivg.evaluation.alpaca.judge import TIMEOUT, Answers, Judge, Plan, check_endpoint, shown_endpoint
from ivg.evaluation.options import CommandOptions, option
from ivg.evaluation.output_folder import OutputFolder
from ivg.evaluation.safe_text import say
from ivg.run.console import is_quiet

T = TypeVar("T", covariant=True)

CHARACTERS_PER_TOKEN = 5  # of a judge prompt, as counted over the public recordings; for the estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeOptions(CommandOptions):
    """Which judge is asked, where, and at what price."""

    annotator: str = option(OFFICIAL_ANNOTATOR, "annotator of alpaca_eval, or path of a configs.yaml")
    judge_model: str | None = option(None, "judge model, instead of the annotator's own")
    endpoint: str | None = option(None, "OpenAI-compatible base URL; default: OPENAI_BASE_URL, else OpenAI")
    api_key_env: str = option("OPENAI_API_KEY", "environment variable that holds the key")
    num_workers: int = option(5, "judge calls side by side")
    patience: float = option(600.0, "seconds after which a call that keeps failing ends the run")
    price: float | None = option(None, "dollars per million prompt tokens; default: the official judge's 10")
    yes: bool = option(False, "spend without asking")


def check_judge_options(options: JudgeOptions) -> None:
    """Find what is wrong with them before anything is read.

    Raises:
        UserError: a number out of range, or an endpoint that cannot be asked.
    """
    if options.num_workers < 1:
        raise UserError(f"num_workers is {options.num_workers}; give an integer >= 1")
    for name, number in (("patience", options.patience), ("price", options.price)):
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise UserError(f"{name} is {number}; give a finite number >= 0")
    check_endpoint(options.endpoint)


def make_client(options: JudgeOptions, *, needed: bool) -> openai.OpenAI:
    """Build the judge's client; without open requests no key is needed.

    Raises:
        UserError: the key is needed and missing, or is none.
    """
    key = os.environ.get(options.api_key_env, "").strip()
    if needed and not key:
        raise UserError(f"no key: the environment variable {options.api_key_env} is not set; set it")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {options.api_key_env} holds no key; set it again")
    url = check_endpoint(options.endpoint)
    return openai.OpenAI(api_key=key or "none", base_url=url, max_retries=0, timeout=TIMEOUT)


def confirm_cost(plan: Plan, annotator: Annotator, options: JudgeOptions, console: Console) -> None:
    """Say what the open calls will cost, and ask.

    Raises:
        UserError: nobody agreed to it.
    """
    price = options.price if options.price is not None else annotator.price
    tokens = plan.num_characters / CHARACTERS_PER_TOKEN
    dollars = "price unknown: give --price" if price is None else f"about ${tokens * price / 1e6:.2f}"
    calls = f"{len(plan.open_requests)} judge calls to {annotator.model} at {plan.endpoint}"
    say(console, f"{calls}, about {tokens:,.0f} prompt tokens, {dollars}; {plan.num_kept} answers are kept")
    if not plan.open_requests or options.yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{len(plan.open_requests)} judge calls cost money; add --yes to agree to it")
    if not Confirm.ask("Go on?", default=False, console=console):
        raise UserError("nothing was asked of the judge")


@contextlib.contextmanager
def stopped_by_interrupt(judge: Judge) -> Iterator[None]:
    """Let Ctrl-C hold back the requests that are queued; afterwards it does again what it did before."""

    def interrupt(*_: object) -> None:
        judge.stop()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class Questions(Protocol[T]):
    """All that an evaluation asks of a judge; called twice: to count what is open, and to ask."""

    def __call__(self, answers: Answers, *, show_progress: bool) -> T:
        """Ask, and return what came of it."""


def ask_when_agreed(
    questions: Questions[T],
    annotator: Annotator,
    options: JudgeOptions,
    output: OutputFolder,
    console: Console,
) -> tuple[T, str]:
    """Ask all questions, after the cost of what is not answered yet was agreed to.

    Args:
        questions: what is asked.
        annotator: for the price and the model's name.
        options: where, and how.
        output: keeps `judge_answers.jsonl`.
        console: where cost and damage are told.

    Returns:
        What came of the questions, and the URL that was asked.
    """
    with AnswerCache(output.path / "judge_answers.jsonl") as cache:
        if cache.damaged:
            say(console, f"{cache.path}: {len(cache.damaged)} damaged lines, whose answers are asked again")
        with make_client(options, needed=False) as client:
            endpoint = shown_endpoint(client)
        plan = Plan(endpoint, cache)
        questions(plan, show_progress=False)
        confirm_cost(plan, annotator, options, console)
        with make_client(options, needed=bool(plan.open_requests)) as client:
            judge = Judge(client, cache, patience=options.patience)
            with stopped_by_interrupt(judge):
                return questions(judge, show_progress=not is_quiet()), endpoint
