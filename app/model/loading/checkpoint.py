"""ModelFolder: a model's files, whether they can be served, and the fingerprint that prompts are bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from app.errors import InvalidInput, UnsupportedModel, first_line
from app.model.attention import ATTENTION_NAME

SUPPORTED_LAYER_TYPES = {"full_attention", "sliding_attention"}
FINGERPRINTED_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "*.safetensors",
)
LOADING_ERRORS = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers raises for files that are not as it expects them."""


class ModelFiles(Protocol):
    """Where a backbone comes from. Loading raises what transformers raises."""

    def read_config(self) -> Any:
        """The configuration of a model that can be served. Raises UnsupportedModel, InvalidInput."""

    def load_tokenizer(self) -> PreTrainedTokenizerFast: ...

    def load_model(self, config: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        """On the CPU, with transformers' report of what was missing."""

    def fingerprint(self) -> str:
        """sha256 over all that shapes the model's answers, 64 hexadecimal digits."""


class ModelFolder:
    """A folder in Hugging Face's layout."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read_config(self) -> Any:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self._folder, trust_remote_code=False)
        except LOADING_ERRORS as error:
            raise UnsupportedModel(
                f"cannot read config.json in {self._folder.name}: {first_line(error)}", param="model"
            ) from error
        check_config(config)
        forget_presumed_eos(config, json.loads((self._folder / "config.json").read_text(encoding="utf-8")))
        return config

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder, use_fast=True, trust_remote_code=False)

    def load_model(self, config: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        from transformers import AutoModelForCausalLM

        model, report = AutoModelForCausalLM.from_pretrained(
            self._folder,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        return model, report

    def fingerprint(self) -> str:
        return fingerprint_files(self._folder)


def check_config(config: Any) -> None:
    """Refuse what the packed forward cannot compute exactly, before any weight is read."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind} is an encoder-decoder; softswap serves decoders", param="model")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(f"transformers has no causal language model for {kind!r}", param="model")
    text_config = config.get_text_config()
    if getattr(text_config, "max_position_embeddings", None) is None:
        raise UnsupportedModel(f"{kind} does not say how many positions it has", param="model")
    other = set(getattr(text_config, "layer_types", None) or ()) - SUPPORTED_LAYER_TYPES
    if other:
        raise UnsupportedModel(f"{kind} has layers softswap cannot serve: {', '.join(sorted(other))}", param="model")
    for field in ("attn_logit_softcapping", "hidden_size_per_layer_input"):
        if getattr(text_config, field, None):
            raise UnsupportedModel(f"{kind} uses {field}, which softswap does not compute", param="model")


def count_positions(config: Any) -> int:
    """Positions the model can be served with, virtual tokens included.

    LongRoPE (Ding et al. 2024) turns every key another way once any text in the batch is longer than the model's
    first pre-training length, so its texts end there: an answer must not depend on its neighbors.
    """
    text_config = config.get_text_config()
    declared = int(text_config.max_position_embeddings)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return min(declared, int(rope["original_max_position_embeddings"]))
    return declared


def forget_presumed_eos(config: Any, written: Mapping[str, Any]) -> None:
    """Take out the end-of-sequence ids that config.json does not name, and that configuration classes presume.

    Llama's class says 2, which is any token at all in the vocabulary of another model of that architecture.
    """
    text_config = config.get_text_config()
    nested = (part for name, part in written.items() if getattr(config, name, None) is text_config)
    for each, its in ((config, written), (text_config, written if text_config is config else next(nested, {}))):
        if "eos_token_id" not in its:
            each.eos_token_id = None


def declared_eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """What a checkpoint names as end-of-sequence, each id once: tokenizer, generation_config.json, config.json.

    They often do not agree, and any of them may name several. Ids may lie outside the vocabulary.
    """
    config = model.config
    declared = [
        getattr(each, "eos_token_id", None)
        for each in (tokenizer, model.generation_config, config, config.get_text_config())
    ]
    ids = (each for some in declared for each in (some if isinstance(some, list | tuple) else [some]))
    return tuple(dict.fromkeys(each for each in ids if isinstance(each, int)))


def check_complete(report: Mapping[str, Any]) -> None:
    """Refuse what transformers only warns about: weights that it could not find and set at random."""
    made_up = sorted([*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])])
    if made_up:
        raise InvalidInput(
            f"the checkpoint lacks {len(made_up)} weights of its architecture, such as {made_up[0]}", param="model"
        )


def fingerprint_files(folder: Path) -> str:
    """sha256 over the names and contents of configuration, tokenizer and weight files."""
    files = sorted({path for pattern in FINGERPRINTED_FILES for path in folder.glob(pattern)})
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(hash_file, files)
        lines = [f"{path.name} {digest}\n" for path, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 over its bytes, which is the fingerprint of a model that is one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over the configuration, the tokenizer and the parameters of a model built in memory."""
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(weights_digest(model).encode())
    return digest.hexdigest()


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 over every parameter's name and bytes: equal before and after whatever must not change the weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
