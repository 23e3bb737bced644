from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from app.errors import InvalidInput, UnsupportedModel
from app.model.backbone import Backbone, choose_device
from app.model.loading.checkpoint import check_config, weights_digest
from tests.support.models import ARCHITECTURE_TO_CONFIG, COMMON, byte_tokenizer, tiny_backbone


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    backbone = tiny_backbone("llama")
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "tiny"))


def load(folder: Path | str, **settings: str) -> Backbone:
    return Backbone.load(folder, device="cpu", **settings)


def build(architecture: str, **changes: object) -> Backbone:
    settings = {**ARCHITECTURE_TO_CONFIG.get(architecture, COMMON), **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **settings)
    config.initializer_range = 0.2
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Backbone.from_model(model, byte_tokenizer(), name="tiny")


@pytest.mark.parametrize("architecture", list(ARCHITECTURE_TO_CONFIG))
def test_every_architecture_shows_its_own_sizes(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    config = backbone.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (backbone.kv_shape.num_layers, backbone.kv_shape.num_kv_heads, backbone.kv_shape.head_dim) == (
        3,
        heads,
        head_dim,
    )
    assert backbone.kv_row_size == 3 * 2 * heads * head_dim
    assert (backbone.hidden_size, backbone.vocab_size, backbone.max_model_len) == (32, 259, 512)
    assert backbone.embed(torch.tensor([[1, 2], [3, 4]])).shape == (2, 2, 32)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_a_directory_gives_the_model_that_was_saved(checkpoint: Path) -> None:
    backbone = load(checkpoint)
    assert backbone.name == "tiny"
    assert backbone.dtype == torch.float32
    assert backbone.eos_token_ids == (1,)
    assert backbone.has_chat_template
    assert len(backbone.fingerprint) == 64
    assert weights_digest(backbone.model) == weights_digest(tiny_backbone("llama").model)


@pytest.mark.parametrize("architecture", list(ARCHITECTURE_TO_CONFIG))
def test_every_architecture_is_read_from_a_directory_whole(architecture: str, tmp_path: Path) -> None:
    written = tiny_backbone(architecture)
    written.model.save_pretrained(tmp_path)
    written.tokenizer.save_pretrained(tmp_path)
    read = load(tmp_path)
    assert weights_digest(read.model) == weights_digest(written.model)
    assert read.kv_shape == written.kv_shape
    ids = torch.tensor([[0, 5, 6, 7]])
    assert torch.equal(read.model(input_ids=ids).logits, written.model(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_can_be_asked_for(checkpoint: Path, dtype: str) -> None:
    backbone = load(checkpoint, dtype=dtype)
    assert str(backbone.dtype) == f"torch.{dtype}"


def test_the_fingerprint_changes_with_any_file_that_matters_and_with_no_other(checkpoint: Path) -> None:
    fingerprints = [load(checkpoint).fingerprint]
    (checkpoint / "README.md").write_text("about")
    shutil.copytree(checkpoint, checkpoint.parent / "elsewhere")
    assert load(checkpoint.parent / "elsewhere").fingerprint == fingerprints[0]
    for change in (_change_weights, _change_config, _change_tokenizer, _change_special_tokens):
        change(checkpoint)
        fingerprints.append(load(checkpoint).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def _change_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _change_config(folder: Path) -> None:
    _change_json(folder / "config.json", lambda config: config.update(rms_norm_eps=2e-6))


def _change_tokenizer(folder: Path) -> None:
    _change_json(folder / "tokenizer.json", lambda content: content["decoder"].update(trim_offsets=False))


def _change_special_tokens(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')


def _change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_models_built_in_memory_have_fingerprints_of_their_weights() -> None:
    same, other = tiny_backbone("llama", seed=0), tiny_backbone("llama", seed=1)
    assert build("llama").fingerprint == build("llama").fingerprint
    assert same.fingerprint != other.fingerprint


def test_serving_and_embedding_change_no_weight() -> None:
    backbone = tiny_backbone("qwen2")
    before = weights_digest(backbone.model)
    embeds = backbone.embed(torch.tensor([[3, 4, 5]])).requires_grad_()
    backbone.model(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad is not None
    assert weights_digest(backbone.model) == before


def test_scalar_parameters_are_part_of_the_digest() -> None:
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.tensor(1.0))
    before = weights_digest(module)
    module.scale.data += 1
    assert weights_digest(module) != before


def test_embeddings_are_scaled_as_the_model_scales_them() -> None:
    backbone = tiny_backbone("gemma3_text")
    ids = torch.tensor([[5, 6, 7]])
    from_ids = backbone.model(input_ids=ids).logits
    torch.testing.assert_close(backbone.model(inputs_embeds=backbone.embed(ids)).logits, from_ids)


# What cannot be served exactly is refused at load


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("gemma2", {"head_dim": 8, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("mamba", {}, "linear_attention"),
        ("bloom", {"max_position_embeddings": 512}, "keys and values"),
        ("bert", {}, "packed"),
        ("diffllama", {}, "more than once"),
        ("stablelm", {}, "packed"),
        ("phimoe", {"sliding_window": 24, "num_local_experts": 4}, "sliding window"),
        ("falcon_h1", {}, "layers softswap cannot serve"),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, "sinks"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused(architecture: str, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        build(architecture, **changes)


def test_encoder_decoders_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        check_config(AutoConfig.for_model("t5"))
    with pytest.raises(UnsupportedModel, match="no causal language model"):
        check_config(AutoConfig.for_model("vit"))


def test_layers_without_keys_and_values_are_refused_by_their_type() -> None:
    config = AutoConfig.for_model("qwen3", **COMMON)
    config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        check_config(config)


def test_a_window_beyond_all_positions_is_no_window() -> None:
    assert build("phimoe", sliding_window=512, num_local_experts=4).max_model_len == 512


def test_longrope_is_served_up_to_the_length_at_which_neighbors_would_matter() -> None:
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64,
    }
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 64, "pad_token_id": 2}
    assert build("phi3", **changes).max_model_len == 64


# What is wrong with files, devices and dtypes is said in one sentence that names the field


def test_an_unknown_model_type_is_refused(checkpoint: Path) -> None:
    _change_json(checkpoint / "config.json", lambda config: config.update(model_type="mystery"))
    with pytest.raises(UnsupportedModel):
        load(checkpoint)


def test_pickled_weights_are_never_opened(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InvalidInput, match="pickled weights are never opened"):
        load(checkpoint)


def test_code_that_comes_with_a_checkpoint_does_not_run(checkpoint: Path) -> None:
    (checkpoint / "code.py").write_text("raise SystemExit('ran')")
    _change_json(
        checkpoint / "config.json", lambda config: config.update(auto_map={"AutoConfig": "code.Config"}, model_type="x")
    )
    with pytest.raises(UnsupportedModel):
        load(checkpoint)


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 3}, {"hidden_size": "wide"}, {"rope_parameters": {"rope_theta": "fast"}}]
)
def test_a_configuration_that_cannot_be_is_refused(checkpoint: Path, changes: dict[str, Any]) -> None:
    _change_json(checkpoint / "config.json", lambda config: config.update(changes))
    with pytest.raises(InvalidInput):
        load(checkpoint)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    if name == "tokenizer.json":
        (checkpoint / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidInput):
        load(checkpoint)


def test_weights_that_are_not_there_are_not_made_up(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"lacks 1 weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load(checkpoint)


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    _change_json(checkpoint / "config.json", lambda config: config.update(intermediate_size=40))
    with pytest.raises(InvalidInput):
        load(checkpoint)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_broken_weight_file_is_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidInput):
        load(checkpoint)


def test_a_truncated_weight_file_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInput):
        load(checkpoint)


def test_an_unknown_hub_name_is_a_clear_error_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="neither a directory nor a reachable hub repository") as caught:
        Backbone.load("no-one/nothing")
    assert caught.value.param == "model"


@pytest.mark.parametrize("device", ["toaster", "cuda:x", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        choose_device(device)
    assert caught.value.param == "device"


def test_a_cuda_device_that_is_not_there_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InvalidInput, match="there is no cuda:2: torch sees cuda:0 to cuda:1"):
        choose_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InvalidInput, match="no CUDA device"):
        choose_device("cuda")


def test_an_unknown_dtype_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(checkpoint, dtype="int8")
    assert caught.value.param == "dtype"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("architecture", ARCHITECTURE_TO_CONFIG)
def test_a_plain_forward_with_a_cache_reads_it_and_warns_of_nothing(architecture: str) -> None:
    backbone, cache = tiny_backbone(architecture), DynamicCache()
    embeds = backbone.embed(torch.arange(3, 10))[None]
    with torch.no_grad():
        whole = backbone.forward(None, inputs_embeds=embeds).logits
        first = backbone.forward(cache, inputs_embeds=embeds[:, :4]).logits
        rest = backbone.forward(cache, inputs_embeds=embeds[:, 4:]).logits
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 7
