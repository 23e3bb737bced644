"""make_config: the transformers configuration that a .gguf file's header describes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType

from app.errors import UnsupportedModel
from app.model.loading.gguf.architectures import EMBEDDING, OUTPUT, ROPE_FACTORS, architecture_of
from app.model.loading.gguf.file import GgufFile

DEFAULT_ROPE_THETA = 10_000.0
FLOAT_TO_DTYPE = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
NUM_LAYERS_OF_GEMMA3_27B = 62
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of every model whose positions are scaled as Llama 3.1's are (Grattafiori et al. 2024); only the factor differs."""
MAX_SCALING_ERROR = 1e-3


def make_config(file: GgufFile) -> Any:
    """Its `dtype` is the file's own: bfloat16 if the weights are quantized.

    Raises UnsupportedModel: the file asks for what the transformers class does not compute.
    """
    from transformers import AutoConfig

    architecture = architecture_of(file)
    given = {name: file.about_model(key) for key, name in architecture.fields.items()}
    fields = {name: value for name, value in given.items() if value}
    fields |= {
        **architecture.constants,
        "vocab_size": file.name_to_tensor[EMBEDDING].shape[0],
        "tie_word_embeddings": OUTPUT not in file.name_to_tensor,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_token_ids(file),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
        "dtype": torch.bfloat16 if file.float_type is None else FLOAT_TO_DTYPE[file.float_type],
    }
    if "head_dim" in given and "head_dim" not in fields and (num_turned := file.about_model("rope.dimension_count")):
        fields["head_dim"] = num_turned
    if ROPE_FACTORS in file.name_to_tensor:
        fields["rope_parameters"] = _llama3_rope(file, fields.pop("rope_theta", DEFAULT_ROPE_THETA))
    if file.architecture == "gemma3":
        fields["query_pre_attn_scalar"] = _gemma3_scalar(fields)
    return AutoConfig.for_model(architecture.model_type, **fields)


def end_token_ids(file: GgufFile) -> int | list[int] | None:
    """Ends of a text and, in models for chats, of a turn."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    found = list(dict.fromkeys(file.metadata[key] for key in keys if key in file.metadata))
    return found[0] if len(found) == 1 else found or None


def _gemma3_scalar(fields: dict[str, Any]) -> int:
    """What scores are divided by the square root of: no key says it, and llama.cpp goes by the size, too."""
    if fields["num_hidden_layers"] == NUM_LAYERS_OF_GEMMA3_27B:
        return int(fields["hidden_size"] // fields["num_attention_heads"])
    return int(fields["head_dim"])


def _llama3_rope(file: GgufFile, theta: float) -> dict[str, Any]:
    """The parameters that gave the file's factors, one for each pair of dimensions.

    Raises UnsupportedModel: they were made in another way.
    """
    tensor = file.name_to_tensor[ROPE_FACTORS]
    factors = file.read_values(tensor, 0, math.prod(tensor.shape))
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max()), **LLAMA3_SCALING}
    if np.abs(_llama3_factors(rope, len(factors)) / factors - 1).max() > MAX_SCALING_ERROR:
        raise UnsupportedModel(
            f"{file.path.name} scales its positions in another way than Llama 3.1, which is not read from .gguf files",
            param="model",
        )
    return rope


def _llama3_factors(rope: dict[str, Any], num_pairs: int) -> np.ndarray:
    """What llama.cpp's converter writes: how much slower each pair of dimensions turns than without scaling."""
    low, high, positions = (rope[name] for name in LLAMA3_SCALING)
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(num_pairs) / num_pairs)
    between = ((positions / wavelengths - low) / (high - low)).clip(0, 1)
    return 1 / ((1 - between) / rope["factor"] + between)
