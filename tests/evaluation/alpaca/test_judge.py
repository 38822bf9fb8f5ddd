import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from ivg.errors import UserError
from ivg.evaluation.alpaca.answer_cache import AnswerCache
from ivg.evaluation.alpaca.judge import Judge, JudgeClient, Plan
from tests.eval.judge_server import ReplayJudge

SECRET = "sk-very-secret"


def choice(content):
    return {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}


def request(instruction):
    text = f'{{\n    "instruction": """{instruction}""",\n}}'
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 1}


@pytest.fixture
def server():
    with ReplayJudge({f"question {i}": choice(f"answer {i}") for i in range(40)}) as judge:
        yield judge


@pytest.fixture
def make_judge(server, tmp_path):
    with contextlib.ExitStack() as caches:

        def make(patience=30.0):
            cache = caches.enter_context(AnswerCache(tmp_path / "answers.jsonl"))
            client = caches.enter_context(
                openai.OpenAI(api_key=SECRET, base_url=server.url, max_retries=0, timeout=10)
            )
            return Judge(client, cache, patience=patience)

        yield make


def ask(judge, i):
    return JudgeClient(judge).chat.completions.create(**request(f"question {i}")).choices[0].message.content


def test_a_question_is_asked_once(server, make_judge):
    judge = make_judge()
    assert [ask(judge, 1), ask(judge, 2), ask(judge, 1)] == ["answer 1", "answer 2", "answer 1"]
    assert server.answered.total() == 2
    assert judge.num_asked == 2


def test_the_same_question_side_by_side_is_asked_once(server, make_judge):
    judge = make_judge()
    server.on_answer = lambda _: time.sleep(0.05)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(judge, 3), range(8)))
    assert answers == ["answer 3"] * 8
    assert server.answered.total() == 1


def test_refusals_and_dropped_connections_are_waited_out(server, make_judge):
    server.failures, server.drops = 0.3, 0.1
    judge = make_judge()
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda i: ask(judge, i), range(40)))
    assert answers == [f"answer {i}" for i in range(40)]
    assert server.refused[429] > 0
    assert server.refused[500] > 0
    assert server.answered.total() == len(server.answered) == 40


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"error": {"message": f"bad key {SECRET}"}}, "refused the key"),
        (403, {"error": {"message": SECRET}}, "refused the key"),
        (404, {"error": {"message": "gone"}}, "does not offer 'm'.*--judge_model or --annotator"),
        (
            403,  # what OpenAI answers where an account never had the model
            {"error": {"message": "no access to model `m`", "code": "model_not_found"}},
            "does not offer 'm'.*--judge_model",
        ),
        (400, {"error": {"message": "gone", "code": "model_decommissioned"}}, "does not offer 'm'"),
        (
            400,
            {"error": {"message": f"cannot generate probabilities for {SECRET}"}},
            "refuses a request .*generate probabilities for <key>.*; choose another with --judge_model",
        ),
        (400, {"error": {"message": "Please reduce the length."}}, "refuses a request .*Please reduce"),
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, "no credit left"),
        (500, {"error": {"message": "down"}}, r"kept failing \(status 500\); answers so far are kept"),
        (200, {"choices": []}, r"kept failing \(an answer without choices\)"),
    ],
)
def test_what_cannot_be_mended_by_waiting_ends_it_with_the_way_out(server, make_judge, status, body, message):
    server.refuse_all = (status, body)
    judge = make_judge(patience=0.0)
    with pytest.raises(UserError, match=message) as stop:
        ask(judge, 1)
    assert SECRET not in str(stop.value)
    # Requests that were queued behind it do not go out any more, even if the judge is back.
    server.refuse_all = None
    with pytest.raises(UserError, match=message):
        ask(judge, 2)
    assert server.answered.total() == 0


def test_a_stopped_judge_lets_nothing_out(server, make_judge):
    judge = make_judge()
    judge.stop()
    with pytest.raises(UserError, match="the evaluation was stopped; run it again"):
        ask(judge, 1)
    assert server.answered.total() == 0


def test_what_a_spam_filter_holds_back_is_left_to_alpaca_eval(server, make_judge):
    server.refuse_all = (400, {"error": {"message": "Sorry! Please try again with a different prompt."}})
    judge = make_judge()
    with pytest.raises(openai.BadRequestError, match="different prompt"):
        ask(judge, 1)
    server.refuse_all = None
    assert ask(judge, 1) == "answer 1"  # one refused request does not stop the others


def test_a_plan_counts_what_is_open_and_asks_nothing(server, make_judge):
    judge = make_judge()
    ask(judge, 1)
    plan = Plan(judge.endpoint, judge.cache)
    assert ask(plan, 1) == "answer 1"
    assert ask(plan, 2) == ""
    assert ask(plan, 2) == ""
    assert (plan.num_kept, len(plan.open_requests)) == (1, 1)
    assert plan.num_characters > len("question 2")
    assert server.answered.total() == 1
