"""Models of a known shape with random weights: speed does not depend on what a model has learned."""

from __future__ import annotations

import itertools
import os
import shutil
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from app.model.attention import ATTENTION_NAME, register_attention
from app.model.backbone import Backbone
from app.model.loading.probe import probe_layers

END = "<|end|>"
INITIALIZER_RANGE = 0.06
"""With the default of 0.02 and tied embeddings a random model repeats its last token forever."""


@dataclass(frozen=True)
class Shape:
    """A model's name and its config.json."""

    name: str
    model_type: str
    sizes: Mapping[str, Any]

    @property
    def vocab_size(self) -> int:
        return int(self.sizes["vocab_size"])

    def build_model(self) -> Any:
        """A float32 model on the CPU with transformers' own attention; the same every time."""
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(self._config(), dtype=torch.float32)
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def build_backbone(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Made on the device. Its fingerprint is its name: hashing 16 GB would take half a minute."""
        register_attention()
        torch.manual_seed(0)
        with device:
            model = AutoModelForCausalLM.from_config(self._config(), dtype=dtype, attn_implementation=ATTENTION_NAME)
        model.eval().requires_grad_(False)
        return Backbone(model, self.build_tokenizer(), self.name, self.name, probe_layers(model))

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """A byte-level tokenizer whose vocabulary has exactly `vocab_size` entries: bytes, made-up words, one END."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = ("Ġ" + "".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=4))
        tokens = alphabet + list(itertools.islice(words, self.vocab_size - len(alphabet) - 1))
        tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(END, special=True)])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)

    def saved(self) -> Path:
        """The folder in Hugging Face layout, float32, that servers and peers load; made unless it is there."""
        folder = cache_folder() / "models" / self.name
        if folder.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(dir=folder.parent))
        try:
            self.build_model().save_pretrained(temporary)
            self.build_tokenizer().save_pretrained(temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return folder

    def _config(self) -> Any:
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        return AutoConfig.for_model(self.model_type, **self.sizes, **special)


def cache_folder() -> Path:
    """Where models and the peers' environments are kept; `SOFTSWAP_BENCHMARK_CACHE` names another place."""
    given = os.environ.get("SOFTSWAP_BENCHMARK_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "softswap" / "benchmarks"


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int, vocab: int, **more: Any) -> Any:
    theta = more.pop("theta", 100_000.0)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": feed_forward,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": True,
        **more,
    }


_TINY = _sizes(128, 2, 4, 2, 256, 512, head_dim=32, max_position_embeddings=512)

# from the config.json of HuggingFaceTB/SmolLM2-135M, Qwen/Qwen3-0.6B and meta-llama/Meta-Llama-3-8B
SMOLLM2_135M = Shape("SmolLM2-135M", "llama", _sizes(576, 30, 9, 3, 1536, 49152))
QWEN3_0_6B = Shape("Qwen3-0.6B", "qwen3", _sizes(1024, 28, 16, 8, 3072, 151936, head_dim=128, theta=1e6))
LLAMA_3_8B = Shape(
    "Llama-3-8B", "llama", _sizes(4096, 32, 32, 8, 14336, 128256, theta=500_000.0, tie_word_embeddings=False)
)
TINY = Shape("tiny-128", "llama", _TINY)
TINY_LLAMA = Shape("tiny-llama", "llama", _TINY | {"tie_word_embeddings": False})
TINY_QWEN3 = Shape("tiny-qwen3", "qwen3", _TINY)


def num_weight_bytes(backbone: Backbone) -> int:
    """What a decode step reads of the weights: everything, except a table that only embeds."""
    table, output = _tables(backbone)
    num_bytes = sum(parameter.nbytes for parameter in backbone.model.parameters())
    return num_bytes - (0 if table is output else table.nbytes)


def num_flops_per_token(backbone: Backbone) -> int:
    """Of the layers' matrix products; without attention, and the output layer, which few tokens go through."""
    table, output = _tables(backbone)
    num_weights = sum(parameter.numel() for parameter in backbone.model.parameters())
    return 2 * (num_weights - table.numel() - (0 if table is output else output.numel()))


def _tables(backbone: Backbone) -> tuple[Any, Any]:
    return backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight
