"""Python functions as values: what they are asked, and what of their answers is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

import ivg
from ivg import ModelConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.config.yaml_file import config_from_dict
from ivg.decoding.sequences import Hypothesis
from ivg.engines.chunk_guidance import FunctionScorer, add_scorers, import_value_function
from ivg.errors import UserError
from ivg.rewards import source_hash
from tests.engines.contract import make_stop_checker, make_tasks
from tests.engines.lockstep import tiny

HERE = "tests.engines.test_chunk_guidance"
asked: list[tuple[dict[str, Any], list[str]]] = []


def count_a(record: dict[str, Any], responses: list[str]) -> list[float]:
    asked.append((record, list(responses)))
    return [text.count("a") for text in responses]


def too_few(record: dict[str, Any], responses: list[str]) -> list[float]:
    return [1.0]


def not_a_number(record: dict[str, Any], responses: list[str]) -> list[float]:
    return [math.nan] * len(responses)


def no_numbers(record: dict[str, Any], responses: list[str]) -> list[str]:
    return ["good"] * len(responses)


def raising(record: dict[str, Any], responses: list[str]) -> list[float]:
    raise KeyError("author")


def with_defaults(record: dict[str, Any], responses: list[str], bonus: float = 0.5) -> list[float]:
    return [bonus] * len(responses)


def of_one(response: str) -> float:
    return 0.0


def of_three(record: dict[str, Any], responses: list[str], bonus: float) -> list[float]:
    return [bonus] * len(responses)


SEARCH = SearchConfig(chunk_guidance="explicit", num_beams=2, num_successors=3, chunk_length=2)
SAMPLING = SamplingConfig(max_new_tokens=8, seed=1)


def decode(function: str, search: SearchConfig = SEARCH) -> list[ivg.Response]:
    base = tiny.loaded(tiny.causal(0, factor=5.0), "base", "base")
    models = tiny.together(base)
    infos = models.infos
    functions = (ValueConfig(function=f"{HERE}.{function}"),)
    infos = type(infos)(infos.base, infos.pairs, infos.values, functions)
    models = type(models)(infos, models.base)
    return ivg.generate(
        [{"prompt": "ab", "id": "x"}, {"prompt": "b", "id": "y"}], models, search=search, sampling=SAMPLING
    )


def test_a_function_ranks_chunks() -> None:
    asked.clear()
    guided = decode("count_a")
    plain = ivg.generate(
        ["ab", "b"], tiny.together(tiny.loaded(tiny.causal(0, factor=5.0), "base", "base")), sampling=SAMPLING
    )
    assert sum(r.text.count("a") for r in guided) > sum(r.text.count("a") for r in plain)
    assert [r.value for r in guided] == [r.text.count("a") for r in guided]
    # Once a prompt and boundary, with the record and the texts of all its rows.
    assert {record["id"] for record, _ in asked} == {"x", "y"}
    assert asked[0][0] == {"prompt": "ab", "id": "x"}
    assert len(asked[0][1]) == 6


def test_a_weight_scales_it_and_scorers_add_up() -> None:
    tasks, checker = make_tasks(2), make_stop_checker()
    prefixes = [Hypothesis((0, 0, 1)), Hypothesis((1,))]
    double = FunctionScorer("f", count_a, 2.0, checker)
    assert list(double(tasks, prefixes)) == [4.0, 0.0]
    both = add_scorers([double, FunctionScorer("f", count_a, -0.5, checker)])
    assert both is not None
    assert list(both(tasks, prefixes)) == [3.0, 0.0]
    assert add_scorers([]) is None


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("too_few", r"returned 1 scores for 6 responses"),
        ("not_a_number", "returned NaN or infinity"),
        ("no_numbers", r"returned \['good'"),
        ("raising", "raised KeyError"),
        ("absent", "defines no absent"),
        ("of_one", r"takes \(response\); give a function of \(record, responses\)"),
        ("of_three", r"takes \(record, responses, bonus\); give"),
    ],
)
def test_a_bad_function_is_one_line(function: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"value function {HERE}\.{function}.*{said}"):
        decode(function)


def test_what_can_be_asked_with_two_arguments_is_taken() -> None:
    assert import_value_function(f"{HERE}.with_defaults") is with_defaults
    assert import_value_function("builtins.max") is max  # which does not tell what it takes


@pytest.mark.parametrize("name", ["ivg.rewards.vader", "ivg.rewards.vader_completion"])
def test_a_reward_is_no_value_function(name: str) -> None:
    with pytest.raises(UserError, match=rf"value function {name}: takes \(rows, responses\), so it is a rew"):
        import_value_function(name)


def test_a_function_cannot_guide_tokens() -> None:
    with pytest.raises(UserError, match="scores whole prefixes, so it cannot guide tokens"):
        decode("count_a", SearchConfig(token_guidance="explicit"))


def test_in_yaml_a_value_is_a_model_or_a_function() -> None:
    common = {"base": {"path": "b"}, "search": {"chunk_guidance": "explicit", "num_successors": 2}}
    config = config_from_dict({**common, "values": [{"function": "a.b", "weight": 0.5}, {"path": "v"}]})
    assert config.values == (
        ValueConfig(function="a.b", chunk_weight=0.5),
        ValueConfig(model=ModelConfig(path="v")),
    )
    with pytest.raises(UserError, match="give one of model"):
        config_from_dict({**common, "values": [{"function": "a.b", "model": {"path": "v"}}]})
    with pytest.raises(UserError, match="dotted name"):
        config_from_dict({**common, "values": [{"function": ""}]})


def test_the_source_is_hashed() -> None:
    assert source_hash(f"{HERE}.count_a") == source_hash(f"{HERE}.raising")
    assert source_hash(f"{HERE}.count_a") != source_hash("ivg.rewards.vader")
