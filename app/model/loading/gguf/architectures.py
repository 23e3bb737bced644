"""Which architectures are read from .gguf files, and how their headers name what a configuration needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import MODEL_ARCH

from app.errors import InvalidInput, UnsupportedModel
from app.model.loading.gguf.file import GgufFile

EMBEDDING, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
SHARED = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
}
RMS_NORM = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
HEAD_DIM = {"attention.key_length": "head_dim"}
WINDOW = {"attention.sliding_window": "sliding_window"}
EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
REQUIRED = ("context_length", "block_count", "embedding_length", "attention.head_count")


@dataclass(frozen=True)
class GgufArchitecture:
    """What is particular about an architecture.

    Attributes:
        model_type: its name in transformers.
        tensors: the table of package `gguf` that says which tensor is which weight.
        fields: keys of the header, without the architecture's name, to fields of the configuration.
        constants: fields that no key gives, because all models of the architecture share them.
    """

    model_type: str
    tensors: MODEL_ARCH
    fields: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)


NAME_TO_ARCHITECTURE = {
    "llama": GgufArchitecture("llama", MODEL_ARCH.LLAMA, SHARED | RMS_NORM | HEAD_DIM),
    "qwen2": GgufArchitecture("qwen2", MODEL_ARCH.QWEN2, SHARED | RMS_NORM),
    "qwen3": GgufArchitecture("qwen3", MODEL_ARCH.QWEN3, SHARED | RMS_NORM | HEAD_DIM),
    "qwen3moe": GgufArchitecture(
        "qwen3_moe", MODEL_ARCH.QWEN3MOE, SHARED | RMS_NORM | HEAD_DIM | EXPERTS, {"norm_topk_prob": True}
    ),
    "phi3": GgufArchitecture("phi3", MODEL_ARCH.PHI3, SHARED | RMS_NORM | WINDOW),
    "gemma3": GgufArchitecture("gemma3_text", MODEL_ARCH.GEMMA3, SHARED | RMS_NORM | HEAD_DIM | WINDOW),
    "starcoder2": GgufArchitecture(
        "starcoder2", MODEL_ARCH.STARCODER2, SHARED | {"attention.layer_norm_epsilon": "norm_epsilon"}
    ),
    "gpt2": GgufArchitecture(
        "gpt2",
        MODEL_ARCH.GPT2,
        {
            "context_length": "n_positions",
            "block_count": "n_layer",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
    ),
}
"""Those that transformers, too, reads from .gguf files, and that tests hold to the model they were written from."""


def architecture_of(file: GgufFile) -> GgufArchitecture:
    """Before any weight is read, and without torch. Raises UnsupportedModel, InvalidInput."""
    name = file.path.name
    found = NAME_TO_ARCHITECTURE.get(file.architecture)
    if found is None:
        known = ", ".join(NAME_TO_ARCHITECTURE)
        raise UnsupportedModel(
            f"{name} is of the architecture {file.architecture}, which is not read from .gguf files; {known} are. "
            "A folder with safetensors may be served",
            param="model",
        )
    missing = [key for key in REQUIRED if not (isinstance(size := file.about_model(key), int) and size > 0)]
    if missing or EMBEDDING not in file.name_to_tensor:
        lacks = f"{file.architecture}.{missing[0]}" if missing else EMBEDDING
        raise InvalidInput(f"{name} lacks {lacks}, so it is no whole language model", param="model")
    _check_positions(file)
    return found


def _check_positions(file: GgufFile) -> None:
    """Refuse ways of turning keys and queries that the configuration could not say."""
    name = file.path.name
    scaling = file.about_model("rope.scaling.type")
    if scaling not in (None, "none") or any(tensor.startswith("rope_factors") for tensor in file.name_to_tensor):
        raise UnsupportedModel(
            f"{name} scales its positions ({scaling or 'longrope'}), which is not read from .gguf files; "
            "a folder with safetensors of the same model may be served",
            param="model",
        )
    num_turned = file.about_model("rope.dimension_count")
    head_dim = file.about_model("attention.key_length")
    if head_dim is not None and num_turned is not None and num_turned != head_dim:
        raise UnsupportedModel(f"{name} turns {num_turned} of {head_dim} dimensions of each head only", param="model")
    if file.about_model("attention.causal") is False:
        raise UnsupportedModel(f"{name} is an encoder; softswap serves decoders", param="model")
