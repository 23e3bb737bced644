"""Models of a known shape with random weights: speed does not depend on what a model has learned."""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

INITIALIZER_RANGE = 0.06  # at the default of 0.02 tied embeddings make a random model repeat its last token for ever
END = "<|end|>"


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama-architecture model; attribute names are those of `LlamaConfig`."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 2048
    rope_theta: float = 100_000.0

    def build_model(self, seed: int = 0) -> LlamaForCausalLM:
        """A float32 model on CPU, in evaluation mode, its parameters without gradients; the same for the same seed."""
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            initializer_range=INITIALIZER_RANGE,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        return LlamaForCausalLM(config).to(torch.float32).eval().requires_grad_(False)

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


# The shape of HuggingFaceTB/SmolLM2-135M (its config.json): 134.5 M parameters, 106.2 M of them in layers.
SMOLLM2_135M = Shape(
    name="SmolLM2-135M",
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    vocab_size=49152,
)
TINY = Shape(
    name="tiny-128",
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=256,
    vocab_size=512,
    max_position_embeddings=512,
)
