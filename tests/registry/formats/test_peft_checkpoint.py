"""Checkpoints that the installed PEFT writes and reads, compared with its own `get_prompt`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import (
    CPTConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.tuners.cartridge import CartridgeConfig
from peft.tuners.trainable_tokens import TrainableTokensConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.registry.formats.foreign_file import describe_checkpoint, read_checkpoint, read_upload
from app.registry.formats.peft_checkpoint import encode_checkpoint
from app.registry.formats.safetensors_file import INITIAL_FILE, encode_initial
from app.task_prompt import PromptKind
from tests.registry.formats.test_foreign_file import shared_file
from tests.support.models import ARCHITECTURE_TO_CONFIG, tiny_backbone
from tests.support.prompts import random_prompt, write_checkpoint

N = 5


def plain_model(architecture: str = "llama") -> torch.nn.Module:
    """The tiny backbone's model again, as transformers makes it: PEFT changes what it wraps."""
    config = AutoConfig.for_model(architecture, **ARCHITECTURE_TO_CONFIG[architecture])
    config.initializer_range = 0.2
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def peft_folder(config: PeftConfig, folder: Path, *, architecture: str = "llama") -> PeftModel:
    """Save what PEFT makes of a configuration, with every trainable value moved away from its initial one."""
    torch.manual_seed(1)
    peft_model = get_peft_model(plain_model(architecture), config)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    peft_model.save_pretrained(folder)
    return peft_model


EMBEDDING_CONFIGS = {
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N),
    "P_TUNING with an MLP": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, encoder_hidden_size=16),
    "P_TUNING with an LSTM": PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=N, encoder_hidden_size=16, encoder_reparameterization_type="LSTM"
    ),
    "CPT": CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[5, 6, 7, 8, 9], cpt_mask=[1] * N, cpt_tokens_type_mask=[1, 2, 3, 2, 3]
    ),
}
KV_CONFIGS = {
    "PREFIX_TUNING": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N),
    "PREFIX_TUNING with a projection": PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=N, prefix_projection=True, encoder_hidden_size=16
    ),
    "CARTRIDGE": CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, num_frozen_tokens=2),
}


@pytest.mark.parametrize("name", EMBEDDING_CONFIGS)
def test_embeddings_are_those_peft_puts_before_the_text(name: str, tmp_path: Path) -> None:
    peft_model = peft_folder(EMBEDDING_CONFIGS[name], tmp_path)
    prompt = read_checkpoint(tmp_path, tiny_backbone())
    assert prompt.kind is PromptKind.EMBEDDINGS
    with torch.no_grad():
        expected = peft_model.get_prompt(batch_size=1)[0]
    # an encoder computes its output again here, which may differ in the last bit from what was saved
    torch.testing.assert_close(prompt.rows, expected, rtol=1e-4 if "P_TUNING" in name else 0, atol=0)
    assert describe_checkpoint(tmp_path)["peft_type"] == name.partition(" ")[0]


@pytest.mark.parametrize("name", KV_CONFIGS)
def test_keys_and_values_are_those_peft_puts_into_the_cache(name: str, tmp_path: Path) -> None:
    peft_model = peft_folder(KV_CONFIGS[name], tmp_path)
    backbone = tiny_backbone()
    prompt = read_checkpoint(tmp_path, backbone)
    assert prompt.kind is PromptKind.KV
    with torch.no_grad():
        cache = peft_model.get_prompt(batch_size=1)
    rows = prompt.rows.view(
        N, backbone.kv_shape.num_layers, 2, backbone.kv_shape.num_kv_heads, backbone.kv_shape.head_dim
    )
    for layer in range(backbone.kv_shape.num_layers):
        assert torch.equal(rows[:, layer, 0].transpose(0, 1), cache.layers[layer].keys[0])
        assert torch.equal(rows[:, layer, 1].transpose(0, 1), cache.layers[layer].values[0])


@pytest.mark.parametrize("task", [0, 1, 2])
def test_a_multitask_prompt_is_the_shared_one_times_that_of_its_task(task: int, tmp_path: Path) -> None:
    config = MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, num_tasks=3, num_ranks=2)
    peft_model = peft_folder(config, tmp_path)
    prompt = read_checkpoint(tmp_path, tiny_backbone(), source_task=task)
    with torch.no_grad():
        expected = peft_model.get_prompt(batch_size=1, task_ids=torch.tensor([task]))[0]
    torch.testing.assert_close(prompt.rows, expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(prompt.rows, load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"])


def test_a_multitask_checkpoint_of_several_tasks_asks_which_one(tmp_path: Path) -> None:
    peft_folder(MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, num_tasks=3), tmp_path)
    for index, said in (
        (None, "say which with source_task, from 0 to 2 .*--source-task"),
        (3, "tasks are 0 to 2"),
        (-1, "0 to 2"),
    ):
        with pytest.raises(InvalidInput, match=said) as refusal:
            read_checkpoint(tmp_path, tiny_backbone(), source_task=index)
        assert refusal.value.param == "source_task"


def test_of_a_multitask_checkpoint_of_one_task_nothing_needs_to_be_chosen(tmp_path: Path) -> None:
    peft_folder(MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, num_tasks=1), tmp_path)
    chosen = read_checkpoint(tmp_path, tiny_backbone(), source_task=0)
    assert chosen.digest == read_checkpoint(tmp_path, tiny_backbone()).digest


@pytest.mark.parametrize("name", ["PROMPT_TUNING", "P_TUNING with an MLP"])
def test_a_checkpoint_of_one_prompt_has_no_source_tasks(name: str, tmp_path: Path) -> None:
    peft_folder(EMBEDDING_CONFIGS[name], tmp_path)
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(InvalidInput, match="only a MULTITASK") as refusal:
            read_checkpoint(path, tiny_backbone(), source_task=0)
        assert refusal.value.param == "source_task"


@pytest.mark.parametrize("task", [0, 2])
def test_a_multitask_file_is_the_same_prompt_by_itself_and_uploaded(task: int, tmp_path: Path) -> None:
    peft_folder(MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, num_tasks=3), tmp_path)
    file, backbone = tmp_path / "adapter_model.safetensors", tiny_backbone()
    wanted = read_checkpoint(tmp_path, backbone, source_task=task)
    assert read_checkpoint(file, backbone, source_task=task).digest == wanted.digest
    assert read_upload(file.read_bytes(), backbone, source_task=task).digest == wanted.digest
    with pytest.raises(InvalidInput, match="say which with source_task, from 0 to 2"):
        read_upload(file.read_bytes(), backbone)


MULTITASK = {
    "prompt_embeddings": torch.randn(N, 32),
    "prefix_task_cols": torch.randn(3, N, 2),
    "prefix_task_rows": torch.randn(3, 2, 32),
}


@pytest.mark.parametrize(
    "changes",
    [
        {"prefix_task_cols": torch.randn(3, N + 1, 2)},
        {"prefix_task_cols": torch.randn(3, N)},
        {"prefix_task_cols": torch.randn(3)},
        {"prefix_task_rows": torch.randn(2, 2, 32)},
        {"prefix_task_rows": torch.randn(3, 2, 31)},
        {"prefix_task_rows": torch.randn(3, 3, 32)},
        {"prompt_embeddings": torch.randn(N * 32)},
        {"prompt_embeddings": torch.randn(1, N, 32)},
        {"prompt_embeddings": torch.full((N, 32), 3e38), "prefix_task_cols": torch.full((3, N, 2), 3e38)},
        {"prefix_task_rows": torch.full((3, 2, 32), torch.nan)},
    ],
)
def test_multitask_tensors_that_do_not_fit_one_another_are_refused(changes: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InvalidInput):
        read_upload(safetensors.torch.save({**MULTITASK, **changes}), tiny_backbone(), source_task=0)


def test_multitask_tensors_may_differ_in_dtype() -> None:
    mixed = {name: tensor.to(torch.bfloat16 if "cols" in name else torch.float16) for name, tensor in MULTITASK.items()}
    prompt = read_upload(safetensors.torch.save(mixed), tiny_backbone(), source_task=1)
    own = mixed["prefix_task_cols"][1].float() @ mixed["prefix_task_rows"][1].float()
    assert torch.equal(prompt.rows, mixed["prompt_embeddings"].float() * own)


def test_of_an_encoder_decoders_rows_the_first_half_is_used(tmp_path: Path) -> None:
    config = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=4)
    torch.manual_seed(0)
    tuning = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=N)
    get_peft_model(T5ForConditionalGeneration(config), tuning).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert saved.shape == (2 * N, 32)
    assert torch.equal(read_checkpoint(tmp_path, tiny_backbone()).rows, saved[:N])


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "phi3", "mixtral"])
@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_loads_what_we_write_and_uses_the_same_values(
    architecture: str, kind: PromptKind, dtype: torch.dtype, tmp_path: Path
) -> None:
    backbone = tiny_backbone(architecture)
    prompt = random_prompt(backbone, N, kind=kind).rounded(dtype)
    write_checkpoint(tmp_path, prompt, backbone)
    (tmp_path / INITIAL_FILE).write_bytes(encode_initial(prompt.rows + 1, prompt))
    assert load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].dtype is dtype
    peft_model = PeftModel.from_pretrained(plain_model(architecture), tmp_path)
    with torch.no_grad():
        used = peft_model.get_prompt(batch_size=1)
    if kind is PromptKind.EMBEDDINGS:
        assert torch.equal(used[0], prompt.rows)
        return
    rows = prompt.rows.view(
        N, backbone.kv_shape.num_layers, 2, backbone.kv_shape.num_kv_heads, backbone.kv_shape.head_dim
    )
    for layer in range(backbone.kv_shape.num_layers):
        assert torch.equal(used.layers[layer].keys[0].transpose(0, 1), rows[:, layer, 0])
        assert torch.equal(used.layers[layer].values[0].transpose(0, 1), rows[:, layer, 1])


def test_a_round_trip_through_peft_keeps_every_bit(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    for kind in (PromptKind.EMBEDDINGS, PromptKind.KV):
        prompt = random_prompt(backbone, N, kind=kind)
        write_checkpoint(tmp_path / "ours", prompt, backbone)
        PeftModel.from_pretrained(plain_model(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
        assert read_checkpoint(tmp_path / "theirs", backbone).digest == prompt.digest


# --- refusals


def minimal_folder(folder: Path, rows: torch.Tensor | None = None, **fields: object) -> Path:
    """What IBM's converter writes: the least a configuration can say."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4} | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"prompt_embeddings": torch.zeros(4, 32) if rows is None else rows}, folder / "adapter_model.safetensors")
    return folder


def test_a_minimal_configuration_is_enough(tmp_path: Path) -> None:
    assert read_checkpoint(minimal_folder(tmp_path), tiny_backbone()).num_virtual_tokens == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"peft_type": "LORA"}, "peft_type"),
        ({"peft_type": "TRAINABLE_TOKENS"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"peft_type": ["PROMPT_TUNING"]}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"task_type": "TOKEN_CLS"}, "task_type"),
        ({"task_type": {}}, "task_type"),
        ({"modules_to_save": ["score"]}, "modules_to_save"),
        ({"num_virtual_tokens": 5}, "num_virtual_tokens"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 4.0}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 10**9}, "num_virtual_tokens"),
        ({"num_transformer_submodules": 2}, "num_virtual_tokens"),
        ({"token_dim": 64}, "token_dim"),
        ({"token_dim": "32"}, "token_dim"),
        ({"peft_type": "PREFIX_TUNING"}, "prompt_embeddings"),
        ({"peft_type": "PREFIX_TUNING", "num_layers": 4}, "num_layers"),
        ({"peft_type": "PREFIX_TUNING", "num_attention_heads": 4}, "num_attention_heads"),
        ({"peft_type": "CARTRIDGE", "token_dim": 32}, "token_dim"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "prompt_embeddings"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused_by_the_name_of_its_field(
    fields: dict[str, object], param: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read_checkpoint(minimal_folder(tmp_path, **fields), tiny_backbone())
    assert refusal.value.param == param


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}'])
def test_a_configuration_that_is_not_a_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    minimal_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(InvalidInput):
        read_checkpoint(tmp_path, tiny_backbone())


def test_adapters_that_change_weights_are_refused_as_peft_writes_them(tmp_path: Path) -> None:
    peft_folder(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), tmp_path / "lora")
    peft_folder(TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[1, 2]), tmp_path / "tokens")
    for name in ("lora", "tokens"):
        with pytest.raises(InvalidInput, match="change the weights"):
            read_checkpoint(tmp_path / name, tiny_backbone())


def test_a_classification_head_is_refused_as_peft_writes_it(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    model = LlamaForSequenceClassification(LlamaConfig(**ARCHITECTURE_TO_CONFIG["llama"], num_labels=2))
    get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=N)).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput) as refusal:
        read_checkpoint(tmp_path, tiny_backbone())
    assert refusal.value.param == "task_type"
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {"task_type": None, "modules_to_save": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="exactly these tensors"):
        read_checkpoint(tmp_path, tiny_backbone())


def test_a_folder_of_pickles_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(plain_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N))
        model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").exists()
    with pytest.raises(InvalidInput, match="save_file"):
        read_checkpoint(tmp_path, tiny_backbone())


def test_the_advice_for_pickles_converts_them(tmp_path: Path) -> None:
    import re
    import shlex
    import subprocess
    import sys

    from app.registry.formats.foreign_file import PICKLE_ADVICE

    minimal_folder(tmp_path)
    expected = read_checkpoint(tmp_path, tiny_backbone()).digest
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    command = re.search(r"python -c .*", PICKLE_ADVICE)
    assert command is not None
    subprocess.run([sys.executable, *shlex.split(command[0])[1:]], cwd=tmp_path, check=True)
    assert read_checkpoint(tmp_path, tiny_backbone()).digest == expected


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([], "no adapter_model.safetensors"),
        (["adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors"], "several files"),
        (["adapter_model.safetensors.index.json"], "several files"),
    ],
)
def test_a_folder_without_its_one_tensor_file_is_refused(names: list[str], match: str, tmp_path: Path) -> None:
    (minimal_folder(tmp_path) / "adapter_model.safetensors").unlink()
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(InvalidInput, match=match):
        read_checkpoint(tmp_path, tiny_backbone())


def test_a_folder_whose_tensor_is_larger_than_any_prompt_is_refused_unread(tmp_path: Path) -> None:
    minimal_folder(tmp_path)
    with (tmp_path / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(10**12)
    with pytest.raises(InvalidInput, match="larger than any prompt"):
        read_checkpoint(tmp_path, tiny_backbone())


@pytest.mark.parametrize(
    "name", ["prompt_tuning_llama-3.2-3B-default", "ptuning_llama-3.2-3B-default", "prefixtuning_llama-3.2-3B-lr_0.001"]
)
def test_real_configurations_of_a_larger_model_are_refused_by_their_width(name: str, tmp_path: Path) -> None:
    config = shared_file(f"prompts/peft-configs/{name}.adapter_config.json")
    minimal_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(config.read_bytes())
    with pytest.raises(InvalidInput, match="tiny-llama needs"):
        read_checkpoint(tmp_path, tiny_backbone())


def test_a_text_prompt_has_no_peft_form() -> None:
    from app.registry.formats.binding import bind_text

    backbone: Backbone = tiny_backbone()
    assert encode_checkpoint(bind_text("Classify:", backbone), backbone) == {}
