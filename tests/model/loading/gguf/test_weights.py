"""A .gguf file is served as the model that it was written from, in whatever types its tensors are."""

from __future__ import annotations

import math
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.errors import InvalidInput, UnsupportedModel
from app.model.backbone import Backbone
from app.model.loading.catalog.models import NAME_TO_MODEL
from app.model.loading.gguf.config import make_config
from app.model.loading.gguf.file import GgufFile
from app.settings import own_cache
from tests.support.gguf_files import MODEL_TYPE_TO_CONFIG, build_model, write_gguf

IDS = torch.tensor([[0, 5, 9, 77, 300, 12, 8]])


def mixed(name: str) -> Type:
    """Four types over the tensors of every layer."""
    if name.startswith("token_embd"):
        return Type.Q8_0
    types = (Type.Q4_1, Type.F16, Type.Q8_0, Type.F32)
    return types[sum(name.encode()) % len(types)]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("model_type", MODEL_TYPE_TO_CONFIG)
def test_a_file_gives_the_model_it_was_written_from_to_the_last_bit(model_type: str, tmp_path: Path) -> None:
    model = build_model(model_type)
    weights = write_gguf(tmp_path / "tiny.gguf", model, types=mixed)
    backbone = Backbone.load(tmp_path / "tiny.gguf", device="cpu")
    model.load_state_dict(weights, strict=False)
    loaded = dict(backbone.model.named_parameters())
    assert set(loaded) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(loaded[name], weight), name
    torch.testing.assert_close(logits(backbone.model), logits(model), atol=1e-5, rtol=1e-5)
    assert (backbone.name, backbone.eos_token_ids, backbone.max_model_len) == ("tiny", (1,), 256)


WHAT_TRANSFORMERS_ASSUMES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"moe_intermediate_size": 768},
    "gemma3_text": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gpt2": {"n_positions": 1024, "n_inner": 256},
}
"""Its reader takes these from the configuration's defaults, whatever the file says."""


@pytest.mark.filterwarnings("ignore")  # of transformers' own reader
@pytest.mark.parametrize("model_type", MODEL_TYPE_TO_CONFIG)
def test_logits_equal_those_of_transformers_own_reader(model_type: str, tmp_path: Path) -> None:
    model = build_model(model_type, **WHAT_TRANSFORMERS_ASSUMES.get(model_type, {}))
    write_gguf(tmp_path / "tiny.gguf", model, types=mixed)
    backbone = Backbone.load(tmp_path / "tiny.gguf", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32, attn_implementation="sdpa"
    )
    for (name, own), (_, other) in zip(*(m.named_parameters() for m in (backbone.model, theirs)), strict=True):
        assert torch.equal(own, other), name
    torch.testing.assert_close(logits(backbone.model), logits(theirs), atol=1e-5, rtol=1e-5)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(num_pairs: int, rope: dict[str, Any]) -> np.ndarray:
    """One after another, as llama.cpp's converter computes them."""
    factors = []
    for pair in range(num_pairs):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (pair / num_pairs)
        if wavelength < rope["original_max_position_embeddings"] / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wavelength > rope["original_max_position_embeddings"] / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def test_positions_scaled_as_llama_3_1_scales_them_are_read_from_the_factors(tmp_path: Path) -> None:
    model = build_model("llama", rope_parameters=LLAMA3, head_dim=32)
    factors = llama3_factors(16, LLAMA3)
    assert len(set(factors.tolist())) > 2
    write_gguf(tmp_path / "tiny.gguf", model, tensors={"rope_freqs.weight": factors})
    backbone = Backbone.load(tmp_path / "tiny.gguf", device="cpu")
    torch.testing.assert_close(logits(backbone.model), logits(model), atol=1e-5, rtol=1e-5)
    factors[-1] /= 2
    write_gguf(tmp_path / "other.gguf", model, tensors={"rope_freqs.weight": factors})
    with pytest.raises(UnsupportedModel, match=r"other\.gguf scales its positions in another way than Llama 3\.1"):
        Backbone.load(tmp_path / "other.gguf", device="cpu")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(Type.F32, torch.float32), (Type.F16, torch.float16), (Type.BF16, torch.bfloat16), (Type.Q4_0, torch.bfloat16)],
)
def test_a_files_own_dtype_is_that_of_its_matrices(kind: Type, dtype: torch.dtype, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", build_model("llama"), types=lambda _: kind)
    assert make_config(GgufFile.read(tmp_path / "tiny.gguf")).dtype == dtype
    assert Backbone.load(tmp_path / "tiny.gguf", device="cpu").dtype == torch.float32


def test_weights_are_rounded_once_to_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf", build_model("gemma3_text"), types=mixed)
    loaded = dict(Backbone.load(tmp_path / "tiny.gguf", device="cpu", dtype="bfloat16").model.named_parameters())
    for name, weight in weights.items():
        assert torch.equal(loaded[name], weight.bfloat16()), name


def test_dequantized_weights_are_quantized_again_if_that_is_asked_for(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", build_model("llama"), types=mixed)
    plain, quantized = (Backbone.load(tmp_path / "tiny.gguf", device="cpu", quantize=how) for how in ("none", "int8"))
    assert quantized.fingerprint == plain.fingerprint
    assert not any(isinstance(module, torch.nn.Linear) for module in quantized.model.modules())
    torch.testing.assert_close(logits(quantized.model), logits(plain.model), atol=0.5, rtol=0.1)


def test_every_end_that_the_file_names_ends_a_text(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", build_model("llama"), metadata={"tokenizer.ggml.eot_token_id": 2})
    assert Backbone.load(tmp_path / "tiny.gguf", device="cpu").eos_token_ids == (1, 2)


def test_the_fingerprint_is_the_hash_of_the_file_under_any_name(tmp_path: Path) -> None:
    model = build_model("llama")
    write_gguf(tmp_path / "tiny.gguf", model)
    (tmp_path / "copy.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    write_gguf(tmp_path / "other.gguf", model, metadata={"general.name": "other"})
    tiny, copy, other = (Backbone.load(tmp_path / f"{name}.gguf") for name in ("tiny", "copy", "other"))
    assert tiny.fingerprint == sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    assert tiny.fingerprint == copy.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"blk.0.attn_q.bias": np.zeros(64, np.float32)},
            r"has 1 tensors .* no place for, such as blk\.0\.attn_q\.bias",
        ),
        ({"blk.2.attn_norm.weight": np.zeros(64, np.float32)}, r"such as blk\.2\.attn_norm\.weight"),
    ],
)
def test_tensors_that_the_model_would_drop_are_refused(tensors: Any, said: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", build_model("llama"), tensors=tensors)
    with pytest.raises(UnsupportedModel, match=said):
        Backbone.load(tmp_path / "tiny.gguf", device="cpu")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"llama.block_count": 3}, r"lacks 9 weights of its architecture, such as model\.layers\.2"),
        ({"llama.feed_forward_length": 128}, "cannot load"),
        ({"llama.attention.key_length": 32}, "cannot load"),
        (
            {"llama.attention.head_count": 3},
            r"describes no model \(.* is not a multiple of the number of",
        ),
        ({"llama.attention.head_count_kv": [2, 2]}, "describes no model"),
        ({"llama.rope.freq_base": "fast"}, "cannot load"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "has a tokenizer that cannot be built"),
        ({"tokenizer.ggml.merges": ["x y"]}, "has a tokenizer that cannot be built"),
    ],
)
def test_a_header_that_does_not_fit_the_weights_is_refused(metadata: Any, said: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", build_model("llama"), metadata=metadata)
    with pytest.raises(InvalidInput, match=said):
        Backbone.load(tmp_path / "tiny.gguf", device="cpu")


MEASURE = """
import re, sys
from app.model.backbone import Backbone

def peak():
    return 1024 * int(re.search("VmHWM:\\\\s+(\\\\d+)", open("/proc/self/status").read())[1])

Backbone.load(sys.argv[1], device="cpu")
before = peak()
model = Backbone.load(sys.argv[2], device="cpu").model
print((peak() - before) / sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say how much memory was used")
def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path) -> None:
    """A third of the model's parameters is its embedding, so that one tensor too many would be seen."""
    write_gguf(tmp_path / "small.gguf", build_model("llama"))
    sizes = {"vocab_size": 40_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 20}
    write_gguf(tmp_path / "large.gguf", build_model("llama", **sizes), types=lambda _: Type.Q8_0)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / f"{name}.gguf") for name in ("small", "large"))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert 0.8 < float(done.stdout) < 1.3


SMOLLM2 = NAME_TO_MODEL["smollm2-135m-instruct"].path(own_cache())
TEXT_TO_IDS = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "a\n\n1": [81, 1116, 33],
}
"""Of SmolLM2's own tokenizer."""


@pytest.mark.by_hand
@pytest.mark.filterwarnings("ignore")  # of transformers' own reader
@pytest.mark.skipif(not SMOLLM2.exists(), reason="`softswap pull smollm2-135m-instruct` fetches the file")
def test_smollm2_is_what_transformers_makes_of_it() -> None:
    backbone = Backbone.load("smollm2-135m-instruct", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=torch.float32)
    for (name, own), (_, other) in zip(*(m.named_parameters() for m in (backbone.model, theirs)), strict=True):
        assert torch.equal(own, other), name
    torch.testing.assert_close(logits(backbone.model), logits(theirs), atol=1e-4, rtol=1e-4)
    assert (backbone.name, backbone.max_model_len, backbone.eos_token_ids) == ("smollm2-135m-instruct", 8192, (2,))
    assert {text: backbone.tokenizer(text)["input_ids"] for text in TEXT_TO_IDS} == TEXT_TO_IDS
