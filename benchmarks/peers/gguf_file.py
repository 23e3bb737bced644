"""A Llama checkpoint as a GGUF file, without a vocabulary: ids go in and logits come out. Runs where `gguf` is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model: Path, target: Path, dtype: str) -> None:
    """Args: model: folder in Hugging Face layout, float32, tied embeddings. dtype: "float32" or "bfloat16"."""
    config, tensors = json.loads((model / "config.json").read_text()), read_safetensors(model / "model.safetensors")
    writer = gguf.GGUFWriter(target, "llama")
    _write_config(writer, config)
    for name, values in tensors.items():
        _write_tensor(writer, *_renamed(name, values, config), dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_safetensors(path: Path) -> dict[str, Array]:
    """Float32 tensors by name."""
    raw = np.memmap(path, np.uint8, mode="r")
    size = int(raw[:8].view("<u8")[0])
    header = json.loads(raw[8 : 8 + size].tobytes())
    found = {}
    for name, fields in header.items():
        if name != "__metadata__":
            assert fields["dtype"] == "F32", name
            start, end = fields["data_offsets"]
            found[name] = raw[8 + size + start : 8 + size + end].view("<f4").reshape(fields["shape"])
    return found


def _write_config(writer: Any, config: dict[str, Any]) -> None:
    for add, name in (
        (writer.add_context_length, "max_position_embeddings"),
        (writer.add_embedding_length, "hidden_size"),
        (writer.add_block_count, "num_hidden_layers"),
        (writer.add_feed_forward_length, "intermediate_size"),
        (writer.add_head_count, "num_attention_heads"),
        (writer.add_head_count_kv, "num_key_value_heads"),
        (writer.add_layer_norm_rms_eps, "rms_norm_eps"),
        (writer.add_vocab_size, "vocab_size"),
    ):
        add(config[name])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("no_vocab")


def _renamed(name: str, values: Array, config: dict[str, Any]) -> tuple[str, Array]:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", values
    if name == "model.norm.weight":
        return "output_norm.weight", values
    layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    if PARTS[part] == "attn_q":
        values = _interleaved(values, config["num_attention_heads"])
    elif PARTS[part] == "attn_k":
        values = _interleaved(values, config["num_key_value_heads"])
    return f"blk.{layer}.{PARTS[part]}.weight", values


def _interleaved(values: Array, num_heads: int) -> Array:
    """llama.cpp rotates neighboring pairs of a head's values, transformers its two halves."""
    size = values.shape[0] // num_heads
    return values.reshape(num_heads, 2, size // 2, -1).swapaxes(1, 2).reshape(values.shape)


def _write_tensor(writer: Any, name: str, values: Array, dtype: str) -> None:
    if dtype == "bfloat16" and values.ndim > 1:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(values))
