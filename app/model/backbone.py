"""Backbone: the frozen language model everything shares, its tokenizer, and the fingerprint prompts are bound to."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from app.errors import InvalidInput, UnsupportedModel
from app.model.attention import ATTENTION_NAME, register_attention
from app.model.kv_cache import KVShape
from app.model.last_layer import LastLayer
from app.model.loading.checkpoint import (
    check_complete,
    check_config,
    find_checkpoint,
    fingerprint_files,
    fingerprint_model,
    first_line,
    read_config,
)
from app.model.loading.exactness import check_packing, probe_kv_shape
from app.model.loading.quantized_linear import quantize_linears

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal language model that never changes.

    Attributes:
        model: unmodified transformers class in eval mode, no gradients on its parameters. A plain call is ordinary
            SDPA and can be differentiated through; with a batch in its keyword arguments it attends over KV blocks.
        name: directory name or hub id; what a request says to ask the model without a task prompt.
        fingerprint: sha256 over configuration, tokenizer and weight files, 64 hexadecimal digits.
        kv_shape: layers, key-value heads and head size, as the model itself shows them.
        quantize: "int8" if the linear layers' weights are (`quantize_linears`), else "none". No part of the
            fingerprint, as the dtype is none: prompts tuned on one are served on the other.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    fingerprint: str
    kv_shape: KVShape
    quantize: str = "none"

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        quantize: str = "none",
    ) -> Backbone:
        """Load a decoder from a directory or, when no such directory exists, from the Hugging Face hub.

        Only safetensors weights are read and no code of the checkpoint runs.

        Args:
            source: directory in Hugging Face layout, or hub id.
            revision: branch, tag or commit of the hub repository.
            dtype: "auto" (the checkpoint's own on CUDA, float32 on CPU), "float32", "bfloat16" or "float16".
            device: "auto", "cpu", "cuda" or "cuda:N".
            quantize: "none" or, on a CPU, "int8".

        Raises:
            UnsupportedModel: the architecture cannot be served exactly; says why.
            InvalidInput: the files are missing or unreadable, or the device is not there.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        target = choose_device(device)
        _check_quantize(quantize, target)
        folder = find_checkpoint(str(source), revision)
        config = read_config(folder)
        register_attention()
        with ThreadPoolExecutor(1) as pool:
            fingerprint = pool.submit(fingerprint_files, folder)
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
                model, report = AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=config,
                    dtype=_choose_dtype(dtype, config, target),
                    attn_implementation=ATTENTION_NAME,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
            except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
                raise InvalidInput(f"cannot load {source}: {first_line(error)}", param="model") from error
        check_complete(report)
        name = Path(source).resolve().name if Path(source).is_dir() else str(source)
        return cls._wrap(model.to(target), tokenizer, name, fingerprint.result(), quantize)

    @classmethod
    def from_model(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, name: str, quantize: str = "none"
    ) -> Backbone:
        """Wrap a model built in memory, whose layers are quantized in place.

        Its fingerprint is taken over its parameters as they were given.
        """
        _check_quantize(quantize, model.device)
        check_config(model.config)
        register_attention()
        model.set_attn_implementation(ATTENTION_NAME)
        return cls._wrap(model, tokenizer, name, fingerprint_model(model, tokenizer), quantize)

    @classmethod
    def _wrap(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, fingerprint: str, quantize: str
    ) -> Backbone:
        if not tokenizer.is_fast:
            raise UnsupportedModel("the checkpoint has no fast tokenizer (tokenizer.json)", param="model")
        model.eval()
        model.requires_grad_(False)
        if quantize == "int8":
            quantize_linears(model)
        kv_shape = probe_kv_shape(model)
        check_packing(model, kv_shape)
        return cls(model, tokenizer, name, fingerprint, kv_shape, quantize)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def hidden_size(self) -> int:
        """Width of the embedding layer, which is what a task prompt's rows must have."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the embedding layer: every id below it can be put in."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def kv_row_size(self) -> int:
        """Values one token leaves in the cache: keys and values of every layer."""
        return self.kv_shape.row_size

    @cached_property
    def max_model_len(self) -> int:
        """Positions the model can be served with, virtual tokens included.

        LongRoPE (Ding et al. 2024) turns every key another way once any text in the batch is longer than the model's
        first pre-training length, so its texts end there: an answer must not depend on its neighbors.
        """
        config: Any = self.model.config.get_text_config()
        declared = int(config.max_position_embeddings)
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            return min(declared, int(rope["original_max_position_embeddings"]))
        return declared

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        declared = self.model.generation_config.eos_token_id if self.model.generation_config else None
        if declared is None:
            declared = self.tokenizer.eos_token_id
        if declared is None:
            return ()
        return tuple(declared) if isinstance(declared, Iterable) else (int(declared),)

    @cached_property
    def last_layer(self) -> LastLayer | None:
        """What spares a plain forward the last layer of tokens whose logits are not read; None if it cannot."""
        return LastLayer.find(self.model, self.kv_shape.num_layers)

    @property
    def has_chat_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    @cached_property
    def _cache_argument(self) -> str:
        """What the model calls its cache: before transformers 5.24 `past_key_values`."""
        return "cache" if "cache" in signature(type(self.model).forward).parameters else "past_key_values"

    def forward(self, cache: DynamicCache | None, **inputs: Any) -> Any:
        """A plain forward of the model, differentiable; a cache is read, and added to."""
        return self.model(**inputs, **{self._cache_argument: cache}, use_cache=cache is not None)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(...) int64 to (..., hidden_size), scaled as the model itself scales its embeddings."""
        return self.model.get_input_embeddings()(token_ids)


def choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput("device must be auto, cpu, cuda or cuda:N", param="device") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("torch sees no CUDA device; use --device cpu or install a CUDA build", param="device")
    return chosen


def _choose_dtype(dtype: str, config: Any, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        own = getattr(config, "dtype", None)
        return own if device.type == "cuda" and isinstance(own, torch.dtype) else torch.float32
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype must be auto, {', '.join(DTYPES)}", param="dtype")
    return DTYPES[dtype]


def _check_quantize(quantize: str, device: torch.device) -> None:
    if quantize not in ("none", "int8"):
        raise InvalidInput("quantize must be none or int8", param="quantize")
    if quantize != "none" and device.type != "cpu":
        raise InvalidInput(f"quantize must be none on {device.type}: int8 is for CPUs only", param="quantize")
