"""load_weights: a transformers model with the weights of a .gguf file, dequantized one tensor at a time.

Transformers reads these files too (`from_pretrained(gguf_file=...)`), but takes half of the model's memory on top and
ten times as long, and drops tensors that it knows no name for, such as biases. Here package `gguf` says which tensor is
which weight, and transformers' own loader asks for one after another. Tests hold the outcome equal to transformers'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from gguf import TensorNameMap, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedModel

from app.errors import UnsupportedModel
from app.model.attention import ATTENTION_NAME
from app.model.loading.gguf.architectures import ROPE_FACTORS, architecture_of
from app.model.loading.gguf.file import GgufFile, GgufTensor

CHUNK_SIZE = 2**18
"""Values that are dequantized at a time; a multiple of every type's block."""
GATE_AND_UP = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.gate_up_proj")
TURNED = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")
TRANSPOSED = re.compile(r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight")


def load_weights(file: GgufFile, config: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model on the CPU, and transformers' report of what was missing.

    Raises:
        UnsupportedModel: the file has tensors that the model has no place for.
        RuntimeError: a tensor has another shape than its weight.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    weights = find_weights(file, empty.state_dict(), config, dtype)
    model, report = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        attn_implementation=ATTENTION_NAME,
        output_loading_info=True,
    )
    return model, report


def find_weights(file: GgufFile, names: Iterable[str], config: Any, dtype: torch.dtype) -> dict[str, GgufWeight]:
    """Each of the model's weights that the file has. Raises UnsupportedModel: tensors of the file are left over."""
    table = get_tensor_name_map(architecture_of(file).tensors, config.num_hidden_layers)
    unused = dict(file.name_to_tensor)
    unused.pop(ROPE_FACTORS, None)
    weights: dict[str, GgufWeight] = {}
    for name in names:
        sources = _sources_of(name, table)
        if not sources or not all(source in file.name_to_tensor for source in sources):
            continue  # it is tied to another one, or transformers' report says that it is missing
        tensors = [file.name_to_tensor[source] for source in sources]
        weights[name] = GgufWeight(file, tensors, _adjustment(file, config, sources[0]), dtype)
        for source in sources:
            unused.pop(source, None)
    if unused:
        raise UnsupportedModel(
            f"{file.path.name} has {len(unused)} tensors that transformers' {config.model_type} has no place for, "
            f"such as {min(unused)}",
            param="model",
        )
    return weights


def _sources_of(name: str, table: TensorNameMap) -> list[str]:
    """The tensors that a weight is made of; those of experts are one weight in transformers."""
    if match := GATE_AND_UP.fullmatch(name):
        return [f"blk.{match[1]}.ffn_{half}_exps.weight" for half in ("gate", "up")]
    source = table.get_name(name, try_suffixes=(".weight", ".bias"))
    if source is None:
        return []
    return [source if source.endswith((".weight", ".bias")) else f"{source}.weight"]


@dataclass(frozen=True)
class Adjustment:
    """What llama.cpp's converter does to a tensor, undone.

    Attributes:
        offset: added to every value before it is rounded to the model's dtype.
        num_heads: whose rows lie as llama.cpp turns them: pairs next to each other instead of halves; 0 for none.
        is_transposed: whether the weight is the tensor's transpose.
    """

    offset: float = 0.0
    num_heads: int = 0
    is_transposed: bool = False

    def rearrange(self, tensor: Tensor) -> Tensor:
        if self.num_heads:
            rest = tensor.shape[1:]
            return tensor.view(self.num_heads, -1, 2, *rest).transpose(1, 2).reshape(tensor.shape)
        return tensor.T.contiguous() if self.is_transposed else tensor


def _adjustment(file: GgufFile, config: Any, name: str) -> Adjustment:
    match file.architecture:
        case "llama" if turned := TURNED.fullmatch(name):
            is_query = turned[1] == "q"
            return Adjustment(num_heads=config.num_attention_heads if is_query else config.num_key_value_heads)
        case "gemma3" if name.endswith("norm.weight"):
            return Adjustment(offset=-1.0)
        case "gpt2" if TRANSPOSED.fullmatch(name):
            return Adjustment(is_transposed=True)
    return Adjustment()


@dataclass(frozen=True)
class GgufWeight:
    """A weight that is read when transformers' loader indexes it, as it does a slice of a safetensors file.

    Attributes: sources: one tensor of the file, or several that are stacked along the second dimension.
    """

    file: GgufFile
    sources: list[GgufTensor]
    adjustment: Adjustment
    dtype: torch.dtype

    def __getitem__(self, _: Any) -> Tensor:
        parts = [self.adjustment.rearrange(self._dequantize(source)) for source in self.sources]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _dequantize(self, source: GgufTensor) -> Tensor:
        weight = torch.empty(source.shape, dtype=self.dtype)
        values, num_values = weight.view(-1), prod(source.shape)
        for first in range(0, num_values, CHUNK_SIZE):
            count = min(CHUNK_SIZE, num_values - first)
            read = torch.from_numpy(self.file.read_values(source, first, count))
            values[first : first + count] = read + self.adjustment.offset if self.adjustment.offset else read
        return weight
