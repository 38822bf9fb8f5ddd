"""Settings follow their requests through the batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from ivg.engines.vllm.row_settings import CONTEXT_NAME, BatchSettings, RowSettings, RowSettingsProcessor

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


OWN = RowSettings((0.5,))
ONE = RowSettings((1.0,))
SCORED = RowSettings((2.0,), (1.0,))


def params(settings: RowSettings | None = None) -> SamplingParams:
    return SamplingParams(extra_args=None if settings is None else settings.to_extra_args())


def processor(settings: BatchSettings) -> RowSettingsProcessor:
    context = {CONTEXT_NAME: settings}
    config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=context))
    return RowSettingsProcessor(config, torch.device("cpu"), False)


def update(size: int, *, removed=(), added=(), moved=()) -> BatchUpdate:
    return BatchUpdate(size, removed, [(row, p, None, []) for row, p in added], moved)


def test_rows_come_go_swap_and_close_up() -> None:
    settings = BatchSettings([0.5])
    rows = processor(settings)
    rows.update_state(update(3, added=[(0, params(ONE)), (1, params()), (2, params(SCORED))]))
    assert settings.take(3) == [ONE, OWN, SCORED]
    rows.update_state(None)
    assert settings.take(3) == [ONE, OWN, SCORED]
    rows.update_state(update(3, moved=[(0, 1, MoveDirectionality.SWAP)]))
    assert settings.take(3) == [OWN, ONE, SCORED]
    rows.update_state(update(2, removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert settings.take(2) == [SCORED, ONE]
    rows.update_state(update(2, added=[(0, params())]))
    assert settings.take(2) == [OWN, ONE]


def test_logits_that_are_not_the_batch_s_get_the_model_s_own_betas() -> None:
    settings = BatchSettings([0.5])
    rows = processor(settings)
    rows.update_state(update(2, added=[(0, params(ONE)), (1, params(SCORED))]))
    assert settings.take(2) == [ONE, SCORED]
    assert settings.take(2) == [OWN, OWN]  # a prompt's log-probs, after the same step
    rows.update_state(None)
    assert settings.take(5) == [OWN] * 5


def test_scored_rows_are_sampled_from_their_own_logits() -> None:
    settings = BatchSettings([0.5])
    rows = processor(settings)
    settings.keep_for_sampling(torch.tensor([1]), torch.tensor([[7.0, 8.0]]))
    assert rows.apply(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[1.0, 2.0], [7.0, 8.0]]
    assert rows.apply(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_row_may_say_its_betas_hold_for_prompts_too() -> None:
    settings = BatchSettings([0.5])
    rows = processor(settings)
    scoring = RowSettings((3.0,), is_for_prompts=True)
    rows.update_state(update(2, added=[(0, params(ONE)), (1, params(scoring))]))
    assert settings.take(2) == [ONE, scoring]
    assert settings.take(7) == [scoring] * 7  # the prompt, after the same step
    rows.update_state(update(1, removed=[1]))
    assert settings.take(1) == [ONE]
    assert settings.take(7) == [OWN] * 7


@pytest.mark.parametrize(
    "given",
    [{"beta": [1.0]}, {"betas": 1.0}, {"betas": [-1.0]}, {"betas": ["a"]}, {"chunk_weights": [1.0]}, 3],
)
def test_malformed_settings_are_refused(given: object) -> None:
    with pytest.raises(ValueError, match="ivg"):
        RowSettingsProcessor.validate_params(SamplingParams(extra_args={"ivg": given}))


def test_betas_of_a_request_and_prompt_log_probs_exclude_each_other() -> None:
    own = SamplingParams(prompt_logprobs=1, extra_args=ONE.to_extra_args())
    with pytest.raises(ValueError, match="prompt_logprobs"):
        RowSettingsProcessor.validate_params(own)
    RowSettingsProcessor.validate_params(SamplingParams(prompt_logprobs=1))
    alone = RowSettings((1.0,), is_for_prompts=True)
    RowSettingsProcessor.validate_params(SamplingParams(prompt_logprobs=1, extra_args=alone.to_extra_args()))
