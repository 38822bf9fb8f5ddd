"""A GGUF file written here becomes a folder that computes what the model did before; others are refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import ivg
from ivg.__main__ import main
from ivg.config import ModelConfig
from ivg.errors import UserError
from ivg.models.folders import require_folder
from ivg.models.gguf import convert_gguf
from ivg.models.inspection import inspect_model
from tests.models.vocabularies import TURNS, bytewise
from tests.tiny import llama

WIDTH, HEADS = 32, 4
LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def _model() -> LlamaForCausalLM:
    return llama(
        3,
        len(bytewise()),
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        intermediate_size=64,
        tie_word_embeddings=False,
    ).float()


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put rows as llama.cpp has them: the two halves of a head's rotary dimensions take turns."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path, model: LlamaForCausalLM, *, is_quantized: bool = False, arch: str = "llama"
) -> str:
    """Write a Llama model with the byte-level vocabulary, as llama.cpp's converter lays it out."""
    config, tokenizer = model.config, bytewise()
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == tokenizer.eos_token else 1 for token in tokens])
    writer.add_token_merges(["t h", "th e", "Ġ the", "Ã ©", "Ġ Ã"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TURNS)
    state = model.state_dict()
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for i in range(config.num_hidden_layers):
        tensors |= {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in LAYER.items()}
    for ours, theirs in tensors.items():
        weight = state[f"{theirs}.weight"]
        if ours.endswith(("attn_q", "attn_k")):
            heads = config.num_attention_heads if ours.endswith("q") else config.num_key_value_heads
            weight = _interleaved(weight, heads)
        numbers = weight.contiguous().numpy()
        if is_quantized and weight.dim() == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{ours}.weight", gguf.quants.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{ours}.weight", numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_a_converted_file_computes_what_the_model_did(tmp_path: Path, is_quantized: bool) -> None:
    model = _model()
    source = write_gguf(tmp_path / "model.gguf", model, is_quantized=is_quantized)
    folder = tmp_path / "folder"
    assert convert_gguf(source, str(folder)) == model.num_parameters()
    converted = AutoModelForCausalLM.from_pretrained(folder)
    if is_quantized:  # the model as the file holds it: every weight rounded to a scale times an int8
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    kind = gguf.GGMLQuantizationType.Q8_0
                    blocks = gguf.quants.quantize(parameter.numpy(), kind)
                    parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    ids = torch.randint(3, len(bytewise()), (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = model(ids).logits, converted(ids).logits
    assert before.std() > 0.5
    assert torch.allclose(before, after, rtol=0, atol=1e-4)
    assert not (tmp_path / "folder.partial").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "the é\nthe"
    assert tokenizer(text)["input_ids"] == bytewise()(text)["input_ids"]
    assert tokenizer.chat_template == TURNS
    info = inspect_model(ModelConfig(path=str(folder)), "base")
    assert info.eos_ids == (bytewise().eos_token_id,)
    (response,) = ivg.generate(
        ["the é"], ivg.load_models(str(folder)), sampling=ivg.SamplingConfig(max_new_tokens=3)
    )
    assert response.num_tokens <= 3


def test_the_command_converts_and_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_gguf(tmp_path / "model.gguf", _model())
    (tmp_path / "empty").mkdir()
    assert main(["convert-gguf", source, str(tmp_path / "empty"), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.endswith("parameters in bfloat16\n")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "empty", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_bad_input_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_gguf(tmp_path / "model.gguf", _model())
    (tmp_path / "text.gguf").write_text("hello")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(good).read_bytes()[:5000])
    part = tmp_path / "model-00001-of-00002.gguf"
    part.write_bytes(Path(good).read_bytes())
    other = write_gguf(tmp_path / "other.gguf", _model(), arch="zebra")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    out = str(tmp_path / "out")
    cases = [
        (["none.gguf", out], "none.gguf: no such file; give a GGUF file"),
        ([str(tmp_path), out], "is no regular file; give a GGUF file"),
        ([str(tmp_path / "text.gguf"), out], "is no GGUF file, it begins with b'hell' instead of b'GGUF'"),
        ([str(part), out], "is one of several parts; join them"),
        ([str(cut), out], "cut.gguf: cannot be read: "),
        ([other, out], "other.gguf: cannot be read: "),
        ([good, str(tmp_path / "full")], "is a file or holds files; give a new folder"),
        ([good, good], "is a file or holds files; give a new folder"),
        ([good, f"{good}/out"], "is no folder that can be written; give a new folder elsewhere"),
        ([good, ""], "is no name of a folder"),
    ]
    for arguments, expected in cases:
        with pytest.raises(SystemExit) as left:
            main(["convert-gguf", *arguments])
        said = capsys.readouterr().err
        assert left.value.code == 2, arguments
        assert expected in said, (arguments, said)
        assert not Path(out).exists()
    with pytest.raises(UserError, match="dtype is 'int8'; give one of float32"):
        convert_gguf(good, out, dtype="int8")  # type: ignore[arg-type]


def test_a_gguf_path_given_as_a_model_names_the_conversion(tmp_path: Path) -> None:
    file = tmp_path / "some" / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    expected = rf"run ivg convert-gguf {file} FOLDER and give FOLDER"
    for path in (file, file.parent):
        with pytest.raises(UserError, match=expected):
            require_folder(str(path), "base")
