"""Random weights of known shapes, made on the device: what speed depends on, without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.model.attention import ATTENTION_NAME, register_attention
from app.model.backbone import Backbone
from app.model.loading.exactness import probe_kv_shape
from benchmarks.gpu.device import Device
from benchmarks.shapes import Shape


@dataclass(frozen=True)
class Spec:
    """A model as its config.json says it is."""

    name: str
    model_type: str
    sizes: dict[str, Any]

    @torch.no_grad()
    def build(self, device: Device) -> Backbone:
        """In the device's dtype. Its fingerprint is its name: hashing 16 GB would take half a minute."""
        config = AutoConfig.for_model(
            self.model_type, **self.sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None
        )
        register_attention()
        torch.manual_seed(0)
        with device.place:
            model = AutoModelForCausalLM.from_config(config, dtype=device.dtype, attn_implementation=ATTENTION_NAME)
        model.eval().requires_grad_(False)
        tokenizer = Shape(self.name, 0, 0, 0, 0, 0, vocab_size=self.sizes["vocab_size"]).build_tokenizer()
        return Backbone(model, tokenizer, self.name, self.name, probe_kv_shape(model))


# meta-llama/Meta-Llama-3-8B and Qwen/Qwen3-0.6B, their config.json
LLAMA_3_8B = Spec(
    "Llama-3-8B",
    "llama",
    {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "tie_word_embeddings": False,
    },
)
QWEN3_0_6B = Spec(
    "Qwen3-0.6B",
    "qwen3",
    {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
    },
)
_TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
}
TINY_LLAMA = Spec("tiny-llama", "llama", {**_TINY, "tie_word_embeddings": False})
TINY_QWEN3 = Spec("tiny-qwen3", "qwen3", {**_TINY, "tie_word_embeddings": True})


def num_weight_bytes(backbone: Backbone) -> int:
    """What a decode step reads of the weights: all, but of a table that only embeds next to nothing."""
    total = sum(parameter.nbytes for parameter in backbone.model.parameters())
    table, output = backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight
    return total if table is output else total - table.nbytes


def num_flops_per_token(backbone: Backbone) -> int:
    """Of the layers' matrix products; without attention, and the output layer, which few tokens go through."""
    layers = sum(parameter.numel() for parameter in backbone.model.parameters())
    table, output = backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight
    return 2 * (layers - table.numel() - (0 if table is output else output.numel()))
