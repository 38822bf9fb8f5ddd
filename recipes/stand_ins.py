"""Tiny models of the architectures that recipes name, and tiny data in the schemas of their datasets."""

import json
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

WIDTH = 16
SHAPES: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 1024},
    "distilbert": {
        "dim": WIDTH,
        "hidden_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 512,
    },
}
DECODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(vocabulary: str, *, chat: bool) -> PreTrainedTokenizerFast:
    """Bytes as tokens. The order of the ids differs by vocabulary, as it does between real families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=vocabulary == "mistral")
    special = ["<unk>", "<s>", "</s>", "<pad>", "[CLS]", "[SEP]"]
    ids = {token: i for i, token in enumerate([*special, *alphabet])}
    core = Tokenizer(models.BPE(vocab=ids, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    names: dict[str, Any] = {"eos_token": "</s>", "pad_token": "<pad>"}
    if vocabulary == "bert":
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    elif vocabulary in ("llama", "mistral"):
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
        )
        names["bos_token"] = "<s>"
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=CHAT if chat else None,
        model_max_length=SHAPES.get(vocabulary, {}).get("max_position_embeddings", 512),
        **names,
    )


def save_model(folder: Path, spec: dict[str, Any]) -> None:
    """Write a tiny model of the given architecture, unless it is there."""
    if (folder / "config.json").exists():
        return
    tok = tokenizer(spec["vocabulary"], chat=spec.get("chat", False))
    shape = {**SHAPES.get(spec["architecture"], DECODER), **spec.get("shape", {})}
    if spec["architecture"] == "mixtral":
        shape["num_local_experts"] = 2
    if spec["architecture"] == "qwen3":
        shape["head_dim"] = 8
    labels = spec.get("labels")
    names = (
        {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
        if labels
        else {}
    )
    config = AutoConfig.for_model(
        spec["architecture"],
        vocab_size=len(tok),
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        **shape,
        **names,
    )
    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(folder)
    tok.save_pretrained(folder)


def save_released(folder: Path, spec: dict[str, Any]) -> None:
    """Write a tiny value or reward model in the format of the paper's authors.

    A backbone, `score_head.weight` with a row for each token (or `outputs` rows), and their class's name.
    """
    save_model(folder, spec)
    file = folder / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if name != "lm_head.weight"}
    num_outputs = spec.get("outputs") or len(tokenizer(spec["vocabulary"], chat=False))
    torch.manual_seed(1)
    save_file({**state, "score_head.weight": torch.randn(num_outputs, WIDTH)}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [spec["class"]]}))


def rows(schema: str) -> list[dict[str, Any]]:
    """Make eight rows in a dataset's own schema."""
    made = []
    for i in range(8):
        question, good, bad = f"Question {i}?", f" A good answer, {i}.", f" Bad {i}."
        turn = [{"role": "user", "content": question}]
        answers = [[*turn, {"role": "assistant", "content": text}] for text in (good, bad)]
        made.append(
            {
                "imdb": {"prompt": f"Film {i} was", "responses": [bad, good], "chosen": 1},
                "comparisons": {
                    "prompt": f"TITLE: {i}\nPOST: {question}\n",
                    "chosen": "TL;DR: " + good,
                    "rejected": "TL;DR: " + bad,
                },
                "ultrafeedback": {
                    "prompt": question,
                    "prompt_id": str(i),
                    "chosen": answers[0],
                    "rejected": answers[1],
                    "messages": answers[0],
                    "score_chosen": 8.0,
                    "score_rejected": 3.0,
                },
                "scores": {
                    "source": "evol_instruct",
                    "instruction": question,
                    "models": ["a", "b"],
                    "completions": [
                        {"model": "a", "response": good, "overall_score": 7.5, "fine-grained_score": 4.25},
                        {
                            "model": "b",
                            "response": bad,
                            "overall_score": 2.0 + i / 4,
                            "fine-grained_score": 1.5,
                        },
                    ],
                    "correct_answers": ["None"],
                    "incorrect_answers": ["None"],
                },
                "instructions": {"instruction": question, "output": good, "generator": "x", "dataset": "y"},
            }[schema]
        )
    return made


def save_dataset(folder: Path, schema: str) -> None:
    """Write a tiny dataset with the splits that recipes read, unless it is there."""
    if folder.exists():
        return
    table = datasets.Dataset.from_list(rows(schema))
    splits = ("train", "test", "train_prefs", "test_prefs", "eval")
    datasets.DatasetDict(dict.fromkeys(splits, table)).save_to_disk(folder)
