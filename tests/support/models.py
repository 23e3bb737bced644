"""Tiny models with random weights, one for each architecture, and a byte-level tokenizer; nothing is downloaded."""

from __future__ import annotations

import copy
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from app.model.backbone import Backbone

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
COMMON: dict[str, object] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ARCHITECTURE_TO_CONFIG: dict[str, dict[str, object]] = {
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen3": {**COMMON, "head_dim": 16},
    "mistral": {**COMMON, "sliding_window": 24},
    "gemma3_text": {
        **COMMON,
        "head_dim": 8,
        "sliding_window": 24,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
        "query_pre_attn_scalar": 8,
    },
    "phi3": {**COMMON, "original_max_position_embeddings": 512},
    "olmo2": COMMON,
    "granite": {
        **COMMON,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
        "attention_multiplier": 0.3,
    },
    "smollm3": {**COMMON, "no_rope_layers": [1, 0, 1]},
    "gpt2": {
        "vocab_size": 259,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    },
    "gpt_neox": {**{k: v for k, v in COMMON.items() if k != "num_key_value_heads"}, "rotary_pct": 0.5},
    "mixtral": {**COMMON, **EXPERTS},
    "qwen3_moe": {**COMMON, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


@cache
def byte_tokenizer(*, has_chat_template: bool = True) -> PreTrainedTokenizerFast:
    """259 ids: <s>, </s>, <pad> and the 256 bytes; puts <s> first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([BOS, EOS, PAD, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    if has_chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def copy_tokenizer(**changes: object) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer, as no other test has it. Args: changes: attributes, such as `chat_template`."""
    copied = copy.deepcopy(byte_tokenizer())
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def build_backbone(
    architecture: str = "llama",
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    generation: GenerationConfig | None = None,
    seed: int = 0,
    **changes: object,
) -> Backbone:
    """As `tiny_backbone`, as no other test has it. Args: changes: of the configuration."""
    config = AutoConfig.for_model(architecture, **{**ARCHITECTURE_TO_CONFIG.get(architecture, COMMON), **changes})
    config.initializer_range = 0.2
    torch.manual_seed(seed)
    with torch.inference_mode(mode=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.generation_config = generation or model.generation_config
        return Backbone.from_model(model, tokenizer or byte_tokenizer(), name=f"tiny-{architecture}")


def character_tokenizer(*, unknown: str | None = "<unk>", end: str | None = EOS) -> PreTrainedTokenizerFast:
    """One id a character, of a-z, blank, colon and new line; any other is `unknown`, or nothing if that is None."""
    special = [token for token in (BOS, end, PAD, unknown) if token is not None]
    vocabulary = {token: i for i, token in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz :\n"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=end, pad_token=PAD, unk_token=unknown
    )


@cache
def tiny_backbone(
    architecture: str = "llama", *, has_chat_template: bool = True, seed: int = 0, quantize: str = "none"
) -> Backbone:
    """A float32 model of three layers with weights large enough that greedy choices are clear.

    All tests share it. Its tensors are not made in inference mode, because some tests differentiate through them.
    """
    settings = dict(ARCHITECTURE_TO_CONFIG[architecture])
    config = AutoConfig.for_model(architecture, **settings)
    config.initializer_range = 0.2
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(has_chat_template=has_chat_template)
    with torch.inference_mode(mode=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return Backbone.from_model(model, tokenizer, name=f"tiny-{architecture}", quantize=quantize)
