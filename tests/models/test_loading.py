"""How models are loaded: dtype, device map, quantization, attention, and no foreign code unless asked."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ivg
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.errors import UserError
from ivg.models.loading import load_models
from tests import tiny
from tests.models import tiny as guides

VOCAB = len(tiny.LETTERS) + 2
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def _llama(folder: Path, seed: int = 1, width: int = 64) -> str:
    """Wide enough for blocks of 64 quantized weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=len(tiny.LETTERS),
    )
    return tiny.save(folder, tiny.scale_up(LlamaForCausalLM(config), factor=4, seed=seed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype(tmp_path: Path, dtype: str) -> None:
    folder = tiny.save(tmp_path / "base", tiny.causal(1, dtype=torch.float32))
    models = load_models(ModelConfig(path=folder, dtype=dtype))  # type: ignore[arg-type]
    assert {p.dtype for p in models.base.module.parameters()} == {getattr(torch, dtype)}
    assert not any(p.requires_grad for p in models.base.module.parameters())
    assert not models.base.module.training


def test_dtype_auto_keeps_the_checkpoints(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base", tiny.causal(1, dtype=torch.bfloat16))
    assert load_models(folder).base.module.dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_device_map(tmp_path: Path, device_map: str) -> None:
    folder = _llama(tmp_path / "base")
    models = load_models(ModelConfig(path=folder, device_map=device_map))
    plain = load_models(ModelConfig(path=folder, device="cpu"))
    expected = "cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu"
    assert {p.device.type for p in models.base.module.parameters()} == {expected}
    sampling = SamplingConfig(max_new_tokens=8)
    texts = [ivg.generate(["hello"], m, sampling=sampling)[0].num_tokens for m in (models, plain)]
    assert texts[0] == texts[1]


def test_attention_implementation(tmp_path: Path) -> None:
    folder = _llama(tmp_path / "base")
    for name in ("eager", "sdpa"):
        config = ModelConfig(path=folder, attn_implementation=name)
        assert load_models(config).base.module.config._attn_implementation == name


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "largest"), [("8bit", 0.1), ("4bit", 0.6)])
def test_quantized_models_decode(tmp_path: Path, quantization: str, largest: float) -> None:
    """Linear layers are quantized, heads are not, and the logits stay near the full model's."""
    folder, other = _llama(tmp_path / "one"), _llama(tmp_path / "two", 2)
    value = tiny.save(tmp_path / "value", tiny.value(3, num_labels=1, dtype=torch.float32))
    config = ModelConfig(path=folder, quantization=quantization, dtype="float32")  # type: ignore[arg-type]
    pair = PairConfig(tuned=config, untuned=ModelConfig(path=other))
    models = load_models(config, pairs=[pair], values=[ValueConfig(model=ModelConfig(path=value))])
    module = models.base.module
    assert module is models.pairs[0].tuned.module  # named twice, loaded once
    kinds = {name.rsplit(".", 1)[-1]: type(m).__name__ for name, m in module.named_modules()}
    assert kinds["q_proj"] == {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[quantization]
    assert type(module.lm_head) is nn.Linear  # not quantized
    ids = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    full = load_models(folder).base.module
    with torch.no_grad():
        exact, found = (m(ids).logits.float().log_softmax(-1) for m in (full, module))
    assert exact.std() > 0.3
    assert 0 < (exact - found).abs().mean() / exact.std() < largest
    search = SearchConfig(
        token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=2, chunk_length=3
    )
    responses = ivg.generate(["hello", "a"], models, search=search, sampling=SamplingConfig(max_new_tokens=7))
    assert all(1 <= response.num_tokens <= 7 for response in responses)


def test_foreign_code_does_not_run_unless_asked(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny.save(folder, tiny.causal(1))
    marker = tmp_path / "ran"
    (folder / "configuration_foreign.py").write_text(
        "from pathlib import Path\nfrom transformers import GPT2Config\n"
        f"Path({str(marker)!r}).touch()\nclass ForeignConfig(GPT2Config):\n    model_type = 'foreign'\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_foreign.ForeignConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"base \(.*base\): ships code of its own, which is not run"):
        load_models(str(folder))
    assert not marker.exists()


def test_missing_folder_is_refused_before_loading(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no such folder; give a folder written by save_pretrained or a Hub name"
    ):
        load_models(str(tmp_path / "nothing"))


def test_a_named_model_is_loaded_once(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base", tiny.causal(1))
    pair = PairConfig(
        tuned=ModelConfig(path=folder, template="a {prompt}"),
        untuned=ModelConfig(path=guides_folder(tmp_path)),
    )
    models = load_models(folder, pairs=[pair])
    assert models.base.module is models.pairs[0].tuned.module
    assert models.pairs[0].tuned.info.template == "a {prompt}"


def guides_folder(tmp_path: Path) -> str:
    return tiny.save(tmp_path / "untuned", guides.scaled(tiny.causal(2), 2))


def _cut_short(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:200])


def _edit(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda f: _cut_short(f, "model.safetensors"), {}, "cannot be loaded"),
        (lambda f: _edit(f, "config.json", n_layer=4), {}, "24 weights are missing from its checkpoint"),
        (lambda f: _edit(f, "config.json", n_layer="two"), {}, "not a model that can be read"),
        (lambda f: _edit(f, "config.json", n_layer=0), {}, "its config.json has 0 layers"),
        (
            lambda f: _edit(f, "config.json", n_layer=-(2**64)),
            {},
            "its config.json has -18446744073709551616",
        ),
        (
            lambda f: (f / "generation_config.json").write_text("[]"),
            {},
            "generation_config.json cannot be read",
        ),
        (lambda f: (f / "tokenizer_config.json").write_text("[]"), {}, "its tokenizer cannot be read"),
        (
            lambda f: _edit(f, "tokenizer_config.json", model_max_length="long"),
            {},
            "its tokenizer cannot be read",
        ),
        (lambda f: None, {"attn_implementation": "flash_attention_2"}, "cannot be loaded"),
    ],
)
def test_broken_models_are_one_line(
    tmp_path: Path, spoil: Any, options: dict[str, Any], message: str
) -> None:
    folder = Path(tiny.save(tmp_path / "base", tiny.causal(1, dtype=torch.float32)))
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_models(ModelConfig(path=str(folder), **options))
    assert str(caught.value).startswith(f"base ({folder}): ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: _cut_short(f, "adapter_model.safetensors"),
        lambda f: (f / "adapter_model.safetensors").unlink(),
        lambda f: _edit(f, "adapter_config.json", r=3),
        lambda f: _edit(f, "adapter_config.json", peft_type="FOO"),
        lambda f: _edit(f, "adapter_config.json", target_modules=["absent"]),
    ],
)
def test_broken_adapters_are_one_line(tmp_path: Path, spoil: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny.causal(1, dtype=torch.float32)
    untuned = tiny.save(tmp_path / "untuned", model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.peft_config["default"].base_model_name_or_path = untuned
    tuned = tmp_path / "tuned"
    adapted.save_pretrained(tuned)
    spoil(tuned)
    pair = PairConfig(tuned=ModelConfig(path=str(tuned)), untuned=ModelConfig(path=untuned))
    with pytest.raises(UserError, match="its adapter cannot be loaded: ") as caught:
        load_models(untuned, pairs=[pair])
    assert "\n" not in str(caught.value)
