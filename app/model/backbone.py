"""Backbone: the frozen language model everything shares, its tokenizer, and the fingerprint prompts are bound to."""

from __future__ import annotations

import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from app.errors import InvalidInput, UnsupportedModel, first_line
from app.model.attention import ATTENTION_NAME, register_attention
from app.model.chat_template import ChatTemplate
from app.model.kv_cache import KVShape
from app.model.last_layer import LastLayer
from app.model.loading.checkpoint import (
    LOADING_ERRORS,
    ModelFiles,
    ModelFolder,
    check_complete,
    check_config,
    count_positions,
    declared_eos_ids,
    fingerprint_model,
)
from app.model.loading.exactness import PackingTrial, check_packing
from app.model.loading.gguf.model import GgufModel
from app.model.loading.hub import fetch_from_hub
from app.model.loading.probe import AttentionLayers, probe_layers
from app.model.loading.quantized_linear import quantize_linears
from app.model.loading.source import ModelSource, check_folder, find_model, open_gguf
from app.sampling import SamplingParams
from app.settings import own_cache

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal language model that never changes.

    Attributes:
        model: unmodified transformers class in eval mode, no gradients on its parameters. A plain call is ordinary
            SDPA and can be differentiated through; with a batch in its keyword arguments it attends over KV blocks.
        name: of the catalog, of the directory, of the file without its ending, or hub id; what a request says to ask
            the model without a task prompt.
        fingerprint: sha256 over configuration, tokenizer and weight files, or of the .gguf file; 64 hexadecimal digits.
        layers: what its attention layers keep and see, as the model itself shows them.
        quantize: "int8" if the linear layers' weights are (`quantize_linears`), else "none". No part of the
            fingerprint, as the dtype is none: prompts tuned on one are served on the other.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    fingerprint: str
    layers: AttentionLayers
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
        cache: Path | None = None,
    ) -> Backbone:
        """Load a decoder from a directory, a .gguf file, the catalog or the Hugging Face hub.

        Only safetensors and GGUF weights are read and no code of the checkpoint runs. Quantized weights of a GGUF file
        are dequantized: the model is the one that its file describes, in `dtype`.

        Args:
            source: directory in Hugging Face layout, .gguf file, name of a catalog model that was pulled, or hub id.
            revision: branch, tag or commit of the hub repository.
            dtype: "auto" (the checkpoint's own on CUDA, float32 on CPU), "float32", "bfloat16" or "float16".
            device: "auto", "cpu", "cuda" or "cuda:N".
            quantize: "none" or, on a CPU, "int8".
            cache: folder of pulled models; by default the user's own.

        Raises:
            UnsupportedModel: the architecture cannot be served exactly; says why.
            InvalidInput: the files are missing or unreadable, or the device is not there.
        """
        target = choose_device(device)
        _check_quantize(quantize, target)
        found = find_model(str(source), cache or own_cache())
        files = _open(found, revision)
        config = files.read_config()
        register_attention()
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(files.fingerprint)
            try:
                tokenizer = files.load_tokenizer()
                model, report = files.load_model(config, _choose_dtype(dtype, config, target))
            except LOADING_ERRORS as error:
                raise InvalidInput(f"cannot load {source}: {first_line(error)}", param="model") from error
        check_complete(report)
        fingerprint = hashing.result()
        found.check_fingerprint(fingerprint)
        return cls._wrap(model.to(target), tokenizer, found.name, fingerprint, quantize)

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
        backbone = cls(model, tokenizer, name, fingerprint, probe_layers(model), quantize)
        check_packing(backbone.trial)
        backbone._warn()
        return backbone

    def _warn(self) -> None:
        """Say at the start what of the checkpoint's text side cannot be used."""
        if self.tokenizer.chat_template and self.chat_template.problem is not None:
            logger.warning("%s %s: conversations are refused", self.name, self.chat_template.problem)
        if not self.eos_token_ids:
            declared = declared_eos_ids(self.model, self.tokenizer)
            named = [self._name_token(each) or f"id {each}" for each in declared]
            reason = f"{', '.join(named)} has no embedding" if named else "its files name none"
            logger.warning("%s has no end-of-sequence token (%s): texts end at max_tokens", self.name, reason)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def kv_shape(self) -> KVShape:
        """Layers, key-value heads and head size."""
        return self.layers.kv_shape

    @cached_property
    def trial(self) -> PackingTrial:
        """Whether it computes packed sequences exactly, with whatever attention and layers are asked about."""
        return PackingTrial(self.model, self.kv_shape)

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
        """Positions the model can be served with, virtual tokens included."""
        return count_positions(self.model.config)

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Each of them ends a text: all that the checkpoint declares, and what its chat template ends a turn with."""
        ids = (*declared_eos_ids(self.model, self.tokenizer), self.chat_template.end_of_turn_id)
        return tuple(dict.fromkeys(each for each in ids if each is not None and 0 <= each < self.vocab_size))

    def end_ids(self, params: SamplingParams) -> tuple[int, ...]:
        """At which a text that is generated with these parameters ends."""
        return params.stop_token_ids if params.ignore_eos else (*params.stop_token_ids, *self.eos_token_ids)

    @cached_property
    def taught_eos_ids(self) -> tuple[int, ...]:
        """What a target ends with when it is learned: one of `eos_token_ids`, the tokenizer's own if it has one.

        Empty if the checkpoint declares none. If all that it declares lie outside the vocabulary, the first of those,
        which whoever teaches refuses by name.
        """
        return (self.eos_token_ids or declared_eos_ids(self.model, self.tokenizer))[:1]

    @cached_property
    def last_layer(self) -> LastLayer | None:
        """What spares a plain forward the last layer of tokens whose logits are not read; None if it cannot."""
        return LastLayer.find(self.model, self.kv_shape.num_layers)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    @property
    def has_chat_template(self) -> bool:
        """Whether it has one that conversations can be written with."""
        return self.chat_template.problem is None

    @cached_property
    def _cache_argument(self) -> str:
        """What the model calls its cache: before transformers 5.24 `past_key_values`."""
        return "cache" if "cache" in signature(type(self.model).forward).parameters else "past_key_values"

    def forward(self, cache: DynamicCache | None, **inputs: Any) -> Any:
        """A plain forward of the model, differentiable; a cache is read, and added to."""
        return self.model(**inputs, **{self._cache_argument: cache}, use_cache=cache is not None)

    def require_embedded(self, token_ids: Collection[int], what: str, *, param: str) -> None:
        """A tokenizer can have more tokens than its model was taught. Raises InvalidInput that names the first one.

        Args: what: the ids are, as the subject of a sentence.
        """
        if not token_ids or (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
            return
        stray = next(each for each in token_ids if not 0 <= each < self.vocab_size)
        named = self._name_token(stray)
        if named is None:
            raise InvalidInput(f"{what} must name ids between 0 and {self.vocab_size - 1}", param=param)
        raise InvalidInput(f"{what} has {named}, and the backbone embeds {self.vocab_size} ids only", param=param)

    def _name_token(self, token_id: int) -> str | None:
        token = self.tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(self.tokenizer) else None
        return None if token is None else f"the token {token!r} (id {token_id})"

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(...) int64 to (..., hidden_size), scaled as the model itself scales its embeddings."""
        return self.model.get_input_embeddings()(token_ids)


def find_fingerprint(found: ModelSource) -> str | None:
    """Of a model that is not loaded; None if its files are not here, and no catalog says it.

    Raises InvalidInput, UnsupportedModel.
    """
    if found.entry is not None:
        return found.entry.fingerprint
    return None if found.path is None else _open(found, None).fingerprint()


def _open(found: ModelSource, revision: str | None) -> ModelFiles:
    found.check_revision(revision)
    if found.path is None:
        folder = fetch_from_hub(found.name, revision)
        check_folder(folder)
        return ModelFolder(folder)
    if found.must_be_pulled:
        raise InvalidInput(f"{found.name} is not here yet; `softswap pull {found.name}` fetches it", param="model")
    return ModelFolder(found.path) if found.path.is_dir() else GgufModel(open_gguf(found.path))


def choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput("device must be auto, cpu, cuda or cuda:N", param="device") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        build = f"this torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch is for CPUs"
        raise InvalidInput(f"torch sees no CUDA device ({build}); use --device cpu, or see docs/gpu.md", param="device")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise InvalidInput(f"there is no {chosen}: torch sees cuda:0 to cuda:{last}", param="device")
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
