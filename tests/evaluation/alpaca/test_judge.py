import base64
import contextlib
import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from ivg.errors import UserError
from ivg.evaluation.alpaca.answer_cache import AnswerCache, request_key
from ivg.evaluation.alpaca.judge import Judge, JudgeClient, Plan, check_endpoint
from tests.eval.judge_server import ReplayJudge

SECRET = "sk-very-secret"
PASSWORD = "pass-word"


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

        def make(patience=30.0, **options):
            cache = caches.enter_context(AnswerCache(tmp_path / "answers.jsonl"))
            url = server.url.replace("//", f"//somebody:{PASSWORD}@")
            client = caches.enter_context(
                openai.OpenAI(api_key=SECRET, base_url=url, max_retries=0, timeout=10)
            )
            return Judge(client, cache, patience=patience, **options)

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
        (
            403,  # not the key's fault
            {"error": {"message": "You are not allowed to request logprobs from this model"}},
            "^judge 'm' at .* refuses a request .status 403: You are not allowed to request logprobs.*"
            "--annotator recipes/judges/without_logprobs --both_orders",
        ),
        (
            400,
            {"error": {"message": "Logprobs is not supported for this model.", "code": 400}},
            "status 400: Logprobs .*it gives no log-probabilities: .*recipes/judges/without_logprobs",
        ),
        (
            400,
            {
                "error": {
                    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
                    "Use 'max_completion_tokens' instead.",
                    "code": "unsupported_parameter",
                }
            },
            "it is a reasoning model: .*recipes/judges/reasoning",
        ),
        (
            400,
            {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model."}},
            "it is a reasoning model",
        ),
        (  # too long a prompt is no refusal of a parameter
            400,
            {"error": {"message": "'max_tokens' or 'max_completion_tokens' is too large: 1."}},
            "refuses a request .*too large.*; choose another",
        ),
        *(
            (status, {"error": error}, "does not offer 'm'.*recipes/judges/open_weights.*ivg eval judge")
            for status, error in (
                (404, {"message": "The model `m` does not exist.", "code": "model_not_found"}),
                (404, {"message": "The API deployment is missing.", "code": "DeploymentNotFound"}),
                (404, {"message": "No endpoints found for m.", "code": 404}),
                (410, {"message": "m was retired."}),
            )
        ),
        (403, "Forbidden", "refused the key"),
        (400, {"error": {"message": "\x1b[2Jgone"}}, r"refuses a request .status 400: \\x1b\[2Jgone"),
        (400, {"error": {"message": 5}}, "refuses a request"),
        (400, {"error": PASSWORD}, "refuses a request"),
        (400, [SECRET], "refuses a request"),
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
    assert PASSWORD not in str(stop.value)
    # Requests that were queued behind it do not go out any more, even if the judge is back.
    server.refuse_all = None
    with pytest.raises(UserError, match=message):
        ask(judge, 2)
    assert server.answered.total() == 0


def answer(**changes):
    """Return the body of an answer; `choice` and `message` change those parts of it."""
    message = {"role": "assistant", "content": "fine", **changes.pop("message", {})}
    own = {"index": 0, "finish_reason": "stop", "message": message, **changes.pop("choice", {})}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({"choices": [own], "usage": usage, **changes}).encode()


MALFORMED = {
    "choices is a number": answer(choices=5),
    "choices is null": answer(choices=None),
    "two choices": answer(choices=[choice("a"), choice("b")]),
    "a choice is null": answer(choices=[None]),
    "no message": answer(choice={"message": None}),
    "another role": answer(message={"role": "user"}),
    "content is a number": answer(message={"content": 5}),
    "tool_calls is a number": answer(message={"tool_calls": 5}),
    "text in total_tokens": answer(usage={"total_tokens": "many"}),
    "negative total_tokens": answer(usage={"total_tokens": -1}),
    "usage is a list": answer(usage=[2]),
    "logprobs is text": answer(choice={"logprobs": "none"}),
    "a logprob is text": answer(choice={"logprobs": {"content": [{"token": "m", "logprob": "x"}]}}),
    "a logprob is NaN": answer(choice={"logprobs": {"content": [{"token": "m", "logprob": float("nan")}]}}),
    "a logprob is too large": answer().replace(b'"stop"', b'"stop", "x": 1e999'),
    "top_logprobs is null inside": answer(
        choice={"logprobs": {"content": [{"token": "m", "logprob": -0.1, "top_logprobs": [None]}]}}
    ),
    "half a surrogate": answer(message={"content": "\ud800"}),
    "5,000 digits": answer().replace(b'"total_tokens": 2', b'"total_tokens": ' + b"9" * 5_000),
    "100,000 deep": b"[" * 100_000,
    "HTML": b"<html><body>Sign in</body></html>",
    "a list": b"[]",
    "null": b"null",
    "nothing": b"",
    "truncated JSON": answer()[:-20],
    "not UTF-8": answer().replace(b"fine", b"\xff\xfe"),
}


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("ivg.evaluation.alpaca.judge._wait", lambda state: 0.0)


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_answer_is_asked_again_and_never_kept(server, make_judge, tmp_path, no_waiting, body):
    judge = make_judge()
    server.bodies = [body]
    assert ask(judge, 1) == "answer 1"
    with (tmp_path / "answers.jsonl").open() as file:
        (kept,) = map(json.loads, file)
    assert kept["answer"]["choices"][0]["message"]["content"] == "answer 1"
    assert len(server.requests) == 2


def test_a_judge_that_answers_nonsense_only_is_given_up_in_one_line(server, make_judge, no_waiting):
    """Four times: each of them may have cost something, and waiting does not mend it."""
    judge = make_judge(patience=1e6)
    server.bodies = [answer(choices=5)] * 9
    message = r"kept failing \(a malformed answer: choices: Input should be a valid list\); answers so far"
    with pytest.raises(UserError, match=message):
        ask(judge, 1)
    assert len(server.requests) == 4


def test_a_body_that_breaks_off_is_asked_again(server, make_judge, no_waiting):
    judge = make_judge()
    server.bodies, server.truncate = [answer()], True
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, judge, 1)
        while server.bodies:
            time.sleep(0.01)
        time.sleep(0.1)
        server.truncate = False
        assert asked.result(timeout=20) == "answer 1"


def test_what_servers_leave_out_or_add_is_no_fault(server, make_judge):
    lean = {"choices": [{"message": {"content": "fine"}, "finish_reason": "eos", "more": 1}], "more": [1]}
    server.bodies = [json.dumps(lean).encode()]
    assert ask(make_judge(), 1) == "fine"


def test_an_answer_that_drips_in_is_given_up_after_its_time(server, make_judge):
    """A byte a second renews every limit that counts from one read to the next."""
    judge = make_judge(patience=0.0, timeout=0.5)
    server.pause = 0.05
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"kept failing \(no whole answer within 0.5 s\)"):
        ask(judge, 1)
    assert time.perf_counter() - start < 10  # the whole answer would take longer
    server.pause = 0.0


def test_what_an_earlier_version_kept_wrongly_is_asked_again(server, make_judge, tmp_path):
    key = request_key(server.url + "/", "chat", request("question 1"))
    poisoned = {"choices": 5, "usage": {"total_tokens": "many"}}
    (tmp_path / "answers.jsonl").write_text(json.dumps({"key": key, "answer": poisoned}) + "\n")
    judge = make_judge()
    plan = Plan(judge.endpoint, judge.cache)
    assert ask(plan, 1) == ""
    assert len(plan.open_requests) == 1
    assert ask(judge, 1) == "answer 1"
    assert ask(judge, 1) == "answer 1"
    assert server.answered.total() == 1


def test_a_full_disk_stops_the_asking_at_once(server, make_judge):
    """A limit on the size of files stands for the disk's end."""
    judge = make_judge()
    ask(judge, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (judge.cache.path.stat().st_size, before[1]))
    try:
        with pytest.raises(
            UserError, match=r"answers.jsonl: File too large; make room, and run again"
        ) as full:
            ask(judge, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(UserError, match=str(full.value)):
        ask(judge, 3)
    assert server.answered.total() == 2


def test_secrets_that_a_server_repeats_are_not_kept(server, make_judge, tmp_path):
    judge = make_judge()
    pair = base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()
    server.bodies = [answer(message={"content": f"{SECRET} {PASSWORD} {pair}"})]
    assert ask(judge, 1) == "<key> <key> <key>"
    assert PASSWORD not in judge.endpoint
    assert PASSWORD not in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize(
    "url",
    [
        "nowhere", "", "ftp://u:pass-word@host/v1", "http://", "http://u:pass-word@/v1", "http://[::1/v1",
        "http://u:pass-word@host:99999/v1", "http://host:x/v1", "http://host/v1?key=pass-word", "http://a b/",
        "http://ho\x00st/", "http://host/v1#pass-word", "http://pass-word^/",
    ],
)  # fmt: skip
def test_an_endpoint_that_cannot_be_asked_is_refused_without_its_password(url):
    with pytest.raises(UserError, match="endpoint is no URL that can be asked") as stop:
        check_endpoint(url)
    assert PASSWORD not in str(stop.value)


def test_endpoints_that_can_be_asked(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for url in ("http://localhost:8000/v1", "https://u:p@host", "http://[::1]:8000/v1", None):
        assert check_endpoint(url) == url
    monkeypatch.setenv("OPENAI_BASE_URL", "nowhere")
    with pytest.raises(UserError, match="endpoint is no URL"):
        check_endpoint(None)


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
