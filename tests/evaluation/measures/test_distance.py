import math

import pytest
import torch

from ivg.errors import UserError
from ivg.evaluation.measures.distance import EncodedResponse, encode_response, response_nll
from tests.evaluation import tiny


@torch.no_grad()
def one_by_one(model, prompt_ids, response_ids):
    """Walk along the response without cache, padding or batch."""
    total, ids = 0.0, list(prompt_ids)
    for token in response_ids:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        total -= float(torch.log_softmax(logits.double(), -1)[token])
        ids.append(token)
    return total


@pytest.mark.parametrize("max_tokens", [1, 40, 8192])
def test_batched_scores_equal_walking_along_each_response(max_tokens):
    model = tiny.model()
    rows = [([3], [4, 5, 0]), ([6, 7, 8, 9, 10], [11]), ([2, 3, 4], [5, 6, 7, 8, 9, 10, 0]), ([12, 13], [0])]
    scores = response_nll(model, [EncodedResponse(*row) for row in rows], max_tokens=max_tokens)
    expected = [one_by_one(model, *row) for row in rows]
    assert scores == pytest.approx(expected, abs=1e-4)
    # The test could not fail if every response were equally likely.
    assert max(expected) - min(expected) > 1


def test_a_response_without_tokens_has_no_score():
    scores = response_nll(tiny.model(), [EncodedResponse([3], []), EncodedResponse([3], [4])])
    assert math.isnan(scores[0])
    assert not math.isnan(scores[1])


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(UserError, match="give a BOS"):
        response_nll(tiny.model(), [EncodedResponse([], [4])])


def test_sampled_ids_are_used_as_they_are():
    row = {"prompt": "w1 w2", "response": "w3 w4", "token_ids": [5, 6, 0], "finish_reason": "eos"}
    assert encode_response(tiny.tokenizer(), row) == EncodedResponse([3, 4], [5, 6, 0])


def test_a_stop_string_is_no_part_of_the_response_and_its_end_is_the_models_own():
    row = {"prompt": "w1", "response": "w3 w4", "token_ids": [5, 6, 7], "finish_reason": "stop"}
    assert encode_response(tiny.tokenizer(), row) == EncodedResponse([3], [5, 6, 0])
    # Without the ids, and where it begins inside a token, the text is encoded anew.
    assert encode_response(tiny.tokenizer(), {**row, "token_ids": None}) == EncodedResponse([3], [5, 6, 0])
    inside = {**row, "response": "w3 w", "token_ids": [5, 6]}
    encoded = encode_response(tiny.tokenizer(), inside)
    own = tiny.tokenizer()("w3 w", add_special_tokens=False)["input_ids"]
    assert encoded == EncodedResponse([3], [*own, 0])


@pytest.mark.parametrize(
    ("finish_reason", "ids"), [("eos", [5, 6, 0]), ("length", [5, 6]), ("stop", [5, 6, 0])]
)
def test_text_is_encoded_and_its_eos_put_back(finish_reason, ids):
    row = {"prompt": "w1", "response": "w3 w4", "finish_reason": finish_reason}
    assert encode_response(tiny.tokenizer(), row, template="w0 {prompt}") == EncodedResponse([2, 3], ids)


def test_ids_of_another_tokenizer_are_refused():
    row = {"prompt": "w1", "response": "w3", "token_ids": [9]}
    with pytest.raises(UserError, match=r"token_ids spell 'w7'.*but the response is 'w3'"):
        encode_response(tiny.tokenizer(), row)
