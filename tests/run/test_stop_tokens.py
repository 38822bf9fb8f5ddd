"""A stop string that is a special token ends a response, though no text ever holds it."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ivg import SamplingConfig, SearchConfig, generate
from ivg.decoding.sequences import Hypothesis, Task
from ivg.decoding.stopping import Ending, StopChecker
from ivg.errors import UserError
from ivg.models.vocab import stop_token_ids
from tests.engines.lockstep import tiny
from tests.shared_data import TOKENIZERS

TASK = Task(index=0, prompt_id="0", prompt_ids={"base": (0,)}, max_tokens=10)


def with_turns() -> PreTrainedTokenizerBase:
    """Letter `e` becomes the special token that closes a turn; EOS stays as it is."""
    tok = tiny.tokenizer()
    tok.add_special_tokens({"extra_special_tokens": ["e"]})
    assert "e" in tok.all_special_tokens
    return tok


def test_ids_of_stop_strings() -> None:
    tok = with_turns()
    assert stop_token_ids(tok, ["ab", "e", "<eos>"]) == (4, tiny.EOS)
    assert stop_token_ids(tok, ["ab", "."]) == ()
    with pytest.raises(UserError, match=r"stop 'e\.' holds the special token 'e', .* give 'e' alone"):
        stop_token_ids(tok, ["e."])


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason=f"needs the real vocabularies in {TOKENIZERS}")
def test_ids_of_stop_strings_in_a_real_vocabulary() -> None:
    tok = AutoTokenizer.from_pretrained(TOKENIZERS / "llama-2")
    assert stop_token_ids(tok, ["</s>", "\n\n", "the"]) == (2,)


def test_the_first_ending_counts() -> None:
    text = {0: "a", 1: "b", 4: "", 9: ""}  # 4 is the stop token, 9 the EOS
    stop_checker = StopChecker([9], ["ab"], lambda ids: "".join(text[i] for i in ids), stop_ids=[4])
    assert stop_checker.find([], np.array([0, 4, 1, 9]), TASK) == Ending(2, "stop")
    assert stop_checker.find([], np.array([0, 9, 4, 1]), TASK) == Ending(2, "eos")
    assert stop_checker.find([0], np.array([1, 4, 0, 0]), TASK) == Ending(1, "stop")  # the string comes first
    assert stop_checker.find([1], np.array([1, 1, 1, 1]), TASK) == Ending(4, None)
    assert stop_checker.text(Hypothesis((0, 0, 4), finish_reason="stop")) == "aa"


def test_responses_end_at_it() -> None:
    tok = with_turns()
    base = tiny.loaded(tiny.causal(0), "base", "base", tok=tok)
    models = tiny.together(base)
    sampling = SamplingConfig(max_new_tokens=30, temperature=2.0)
    prompts = [{"prompt": "ab", "id": i} for i in range(20)]
    free = generate(prompts, models, sampling=sampling, search=SearchConfig(chunk_length=7))
    stopped = generate(
        prompts,
        models,
        sampling=SamplingConfig(max_new_tokens=30, temperature=2.0, stop=("e",)),
        search=SearchConfig(chunk_length=7),
    )
    num_cut = 0
    for before, after in zip(free, stopped, strict=True):
        # The draws are the same, so a stopped response is the free one up to its first stop token.
        if 4 in before.token_ids:
            expected = before.token_ids[: before.token_ids.index(4) + 1]
            num_cut += 1
            assert after.finish_reason == "stop"
            assert after.text == tok.decode(expected, skip_special_tokens=True)
        else:
            expected = before.token_ids
            assert after.finish_reason == before.finish_reason
        assert after.token_ids == expected
    assert num_cut > 3
