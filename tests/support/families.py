"""Tiny models of every decoder family that the installed transformers has, set so that what sets one apart shows early.

Windows end after 24 tokens, rotations and scales change at position 32: a text of some hundred tokens reaches them all.
"""

from __future__ import annotations

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.models import ARCHITECTURE_TO_CONFIG, COMMON

MAX_PARAMETERS = 20_000_000
WINDOW, CHANGE = 24, 32
FULL = ["full_attention"] * 3
SMALL: dict[str, object] = {
    "moe_intermediate_size": 24,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 24,
}
LATENT: dict[str, object] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
ROTATED: dict[str, object] = {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
NARROW: dict[str, object] = {"head_dim": 8}
STATELESS: dict[str, object] = {"head_dim": 8, "layer_types": FULL}
GPT: dict[str, object] = {"rotary_dim": 4, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
FAMILY_TO_CHANGES: dict[str, dict[str, object]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "sarvam_mla", "youtu"), LATENT),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "helium"), ROTATED),
    **dict.fromkeys(("codegen", "gptj"), GPT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "minimax", "lfm3", "lara_mini"), STATELESS),
    **dict.fromkeys(("gpt_oss", "mimo_v2_flash", "flint", "mixtral"), NARROW),
    "longcat_flash": {**LATENT, "num_layers": 3},
    "lfm2_moe": {"layer_types": FULL, "num_dense_layers": 1},
    "gemma2": {"head_dim": 8, "attn_logit_softcapping": None, "query_pre_attn_scalar": 8},
    "vaultgemma": {"head_dim": 8, "attn_logit_softcapping": None, "query_pre_attn_scalar": 8},
    "gemma4_text": {
        "head_dim": 8,
        "global_head_dim": 8,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 259,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "llama4_text": {"head_dim": 8, "layer_types": FULL, "no_rope_layers": [1, 0, 1], "moe_layers": []},
    "modernbert-decoder": {"local_attention": WINDOW, "global_attn_every_n_layers": 3},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "olmo": {"clip_qkv": 0.5},
}
VARIANT_TO_CHANGES: dict[str, dict[str, object]] = {
    "plain": {},
    "window": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "alternating": {
        "sliding_window": WINDOW,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "scaled": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": CHANGE,
            "llama_4_scaling_beta": 0.5,
        },
        "attn_temperature_tuning": True,
        "floor_scale": CHANGE,
        "attn_scale": 0.5,
    },
}
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build_family(family: str, variant: str = "plain") -> PreTrainedModel | None:
    """Always the same weights, with transformers' eager attention, which masks nothing away and adds what there is.

    None if the installed transformers builds no tiny model of this kind.
    """
    settings = {**COMMON, **SMALL, **ARCHITECTURE_TO_CONFIG.get(family, {}), **FAMILY_TO_CHANGES.get(family, {})}
    settings |= VARIANT_TO_CHANGES[variant]
    try:
        return _build(family, settings)
    except KeyError:  # some want a rotation for each type of layers
        rotation = settings.get("rope_parameters")
        types = dict.fromkeys(("full_attention", "sliding_attention"), rotation)
        try:
            return _build(family, {**settings, "rope_parameters": types}) if rotation else None
        except Exception:
            return None
    except Exception:  # of configurations, which refuse in many ways
        return None


def _build(family: str, settings: dict[str, object]) -> PreTrainedModel | None:
    config = AutoConfig.for_model(family, **copy.deepcopy(settings))
    config.initializer_range = 0.2
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if sum(parameter.numel() for parameter in shape.parameters()) > MAX_PARAMETERS:
        return None
    torch.manual_seed(0)
    with torch.inference_mode(mode=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()
