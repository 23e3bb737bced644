"""Tiny .gguf files, written from transformers models as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, dequantize, get_tensor_name_map, quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from app.model.loading.gguf.architectures import NAME_TO_ARCHITECTURE

MODEL_TYPE_TO_NAME = {each.model_type: name for name, each in NAME_TO_ARCHITECTURE.items()}
SPECIAL = ("<s>", "</s>", "<pad>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
TRAINING_TEXT = [
    "The parliament voted on Tuesday to raise the tax on fuel, and 12 of 345 members weren't there.",
    "A  warm , funny film\n\nwith 2 stories:\t'it's 2024' ... naïve café, straße, дом, 東京 🙂",
] * 3
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
MODEL_TYPE_TO_CONFIG: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 32},
    "qwen3_moe": {
        **SIZES, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "norm_topk_prob": True, "attention_bias": False,
    },
    "phi3": SIZES,
    "gemma3_text": {**SIZES, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16},
    "starcoder2": SIZES,
    "gpt2": {
        "vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 96,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    },
}  # fmt: skip


@cache
def byte_level(cut: pre_tokenizers.PreTokenizer | None = None) -> Tokenizer:
    """A tokenizer of 320 tokens that was trained on a few lines, and cuts texts as GPT-2 does unless told otherwise."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def build_model(model_type: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**MODEL_TYPE_TO_CONFIG[model_type], **changes})
    config.initializer_range = 0.2
    with torch.inference_mode(mode=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms of 1 and biases of 0 would hide a mistake
            parameter.data += torch.rand_like(parameter) * (0.5 if "norm" in name else 0.1)
    return model.requires_grad_(requires_grad=False)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    types: Callable[[str], Type] = lambda name: Type.F32,
    metadata: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> dict[str, torch.Tensor]:
    """The weights that the file describes, by transformers' names: those of the model, quantized and dequantized.

    Args:
        types: type of each matrix by its name in the file; vectors are in float32.
        metadata: to add, or instead of the model's own; None leaves a key out.
        tensors: more of them.
    """
    name = MODEL_TYPE_TO_NAME[model.config.model_type]
    writer = GGUFWriter(path, name)
    about = {**about_model(model, name), **about_tokenizer(tokenizer or byte_level()), **(metadata or {})}
    for key, value in about.items():
        if value is not None:
            _add(writer, key, value)
    described = {}
    for key, parameter in model.named_parameters():
        for source, part, undo in _tensors_of(model, name, key, parameter.data):
            kind = types(source) if part.dim() > 1 else Type.F32
            values = quantize(part.contiguous().numpy(), kind)
            described.setdefault(key, []).append(undo(torch.from_numpy(dequantize(values, kind).copy())))
            writer.add_tensor(source, values, raw_dtype=kind)
    for source, values in (tensors or {}).items():
        writer.add_tensor(source, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {key: parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for key, parts in described.items()}


def about_model(model: PreTrainedModel, name: str) -> dict[str, Any]:
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    keys = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.n_inner if name == "gpt2" else config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "attention.key_length": getattr(config, "head_dim", None),
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": getattr(config, "norm_epsilon", getattr(config, "layer_norm_epsilon", None)),
        "rope.freq_base": rope.get("rope_theta"),
        "expert_count": getattr(config, "num_experts", None),
        "expert_used_count": getattr(config, "num_experts_per_tok", None),
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
    }
    return {f"{name}.{key}": value for key, value in keys.items()} | {"general.name": "tiny"}


def about_tokenizer(tokenizer: Tokenizer, pre: str = "gpt-2") -> dict[str, Any]:
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    described = json.loads(tokenizer.to_str())["model"]
    about = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "merges": [" ".join(pair) for pair in described["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 2,
        "add_bos_token": True,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in about.items()} | {"tokenizer.chat_template": CHAT_TEMPLATE}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _tensors_of(
    model: PreTrainedModel, name: str, key: str, weight: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]:
    """The tensors that a weight becomes: name, values as they are stored, and what makes the weight of them again."""
    if key.endswith("experts.gate_up_proj"):
        layer = key.split(".")[2]
        for half, part in zip(("gate", "up"), weight.chunk(2, dim=1), strict=True):
            yield f"blk.{layer}.ffn_{half}_exps.weight", part, _same
        return
    table = get_tensor_name_map(NAME_TO_ARCHITECTURE[name].tensors, model.config.num_hidden_layers)
    source = table.get_name(key, try_suffixes=(".weight", ".bias"))
    source = f"{source}.weight" if key.endswith("experts.down_proj") else source
    if name == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
        config = model.config
        num_heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
        rows = torch.arange(len(weight)).reshape(num_heads, 2, -1).swapaxes(1, 2).flatten()
        yield source, weight[rows], lambda stored: stored[rows.argsort()]
    elif name == "gemma3" and key.endswith("norm.weight"):
        yield source, weight + 1, lambda stored: stored - 1
    elif name == "gpt2" and weight.dim() == 2 and ".h." in key:
        yield source, weight.T, lambda stored: stored.T
    else:
        yield source, weight, _same


def _same(stored: torch.Tensor) -> torch.Tensor:
    return stored
