"""The policy of cd-q: its logits are those of its own forward, its ids the value model's."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ivg.errors import UserError
from ivg.models.rendering import Renderer
from ivg.training.value.policy import Policy, check_vocabulary
from tests import tiny


def _model(kind: str, **keys: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    config = AutoConfig.for_model(
        kind, vocab_size=33, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, **sizes, **keys
    )
    return tiny.scale_up(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_next_logits_are_those_of_the_models_forward(kind: str) -> None:
    model = tiny.causal(0, dtype=torch.float32) if kind == "gpt2" else _model(kind)
    ids = torch.randint(0, 33, (3, 9), generator=torch.Generator().manual_seed(1))
    attention_mask = (torch.arange(9) < torch.tensor([[9], [7], [5]])).long()
    mask = attention_mask.bool() & (torch.arange(9) >= torch.tensor([[2], [3], [4]]))
    exact = model(input_ids=ids, attention_mask=attention_mask).logits[mask]
    next_logits = Policy(model).next_logits(ids, attention_mask, mask)
    torch.testing.assert_close(next_logits(slice(0, 5)), exact[:5])
    torch.testing.assert_close(next_logits(slice(5, 99)), exact[5:])
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "keys"), [("gemma2", {"final_logit_softcapping": 0.5}), ("granite", {"logits_scaling": 3.0})]
)
def test_a_model_that_changes_its_logits_is_refused(kind: str, keys: dict[str, float]) -> None:
    with pytest.raises(UserError, match="scales or caps its logits"):
        Policy(_model(kind, **keys))


def test_ids_must_mean_the_same_tokens() -> None:
    ours = Renderer(tiny.tokenizer(), None)
    check_vocabulary(Renderer(tiny.tokenizer(), None), ours, "base")
    with pytest.raises(
        UserError, match=r"policy_model base: its ids are not the value model's .*' ' differs"
    ):
        check_vocabulary(Renderer(tiny.tokenizer(tiny.LETTERS[::-1]), None), ours, "base")


def test_responses_must_end_alike() -> None:
    """A chat policy closes a turn with another token than a value model that reads bare prompts."""
    ours = Renderer(tiny.tokenizer(), None)
    chat = tiny.tokenizer(chat=True)
    closing = "{% if m['role'] == 'assistant' %}<pad>{% endif %}"
    chat.chat_template = f"{{% for m in messages %}}{{{{ m['content'] }}}}{closing}{{% endfor %}}"
    with pytest.raises(UserError, match="ends a response with '<pad>', the value model with '<eos>'"):
        check_vocabulary(Renderer(chat, "chat"), ours, "base")
    check_vocabulary(Renderer(chat, "{prompt}"), ours, "base")
    check_vocabulary(Renderer(chat, "chat"), Renderer(chat, "chat"), "base")
