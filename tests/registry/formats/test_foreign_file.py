"""Prompts from files of other programs, and from untrusted bytes."""

from __future__ import annotations

import json
import os
import random
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BackboneMismatch, InvalidInput
from app.model.backbone import Backbone
from app.registry.formats.binding import norm_warnings, require_fit
from app.registry.formats.foreign_file import describe_checkpoint, read_checkpoint, read_upload
from app.task_prompt import PromptKind
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt, random_rows, write_checkpoint
from tests.support.uploads import NAME, WIDTH, good_file, hostile_files

# The release asks a million: SOFTSWAP_NUM_MUTATIONS=1000000
# pytest tests/registry/formats/test_binding_files.py -k mutations
NUM_MUTATIONS = int(os.environ.get("SOFTSWAP_NUM_MUTATIONS", "4000"))
MAX_REFUSAL_S = 0.05
SHARED = Path(os.environ.get("SOFTSWAP_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def shared_file(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not part of the repository; set SOFTSWAP_SHARED_DATA to where it is")
    return path


@cache
def real_backbone(name: str) -> Backbone:
    return Backbone.load(shared_file(f"models/{name}"), dtype="float32", device="cpu")


# --- uploads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_upload_gives_the_rows_that_were_saved(backbone: Backbone, dtype: torch.dtype) -> None:
    rows = random_rows(backbone, 4).to(dtype)
    prompt = read_upload(safetensors.torch.save({NAME: rows}), backbone)
    assert prompt.kind is PromptKind.EMBEDDINGS
    assert prompt.rows is not None
    assert torch.equal(prompt.rows, rows.float())
    assert prompt.backbone_fingerprint == backbone.fingerprint


def test_an_uploaded_prefix_has_the_width_of_all_layers(backbone: Backbone) -> None:
    rows = random_rows(backbone, kind=PromptKind.KV)
    data = safetensors.torch.save({NAME: rows})
    for kind in (PromptKind.KV, None):
        assert read_upload(data, backbone, kind=kind).kind is PromptKind.KV
    with pytest.raises(InvalidInput, match="32"):
        read_upload(data, backbone, kind=PromptKind.EMBEDDINGS)


def test_no_hostile_upload_is_accepted_and_each_is_refused_at_once(backbone: Backbone) -> None:
    assert backbone.hidden_size == WIDTH
    num_files = 0
    for description, data in hostile_files():
        started = time.thread_time()  # of this thread alone, so that a busy machine does not count
        with pytest.raises(InvalidInput) as refusal:
            read_upload(data, backbone)
        duration_s = time.thread_time() - started
        assert duration_s < MAX_REFUSAL_S, f"{description} took {duration_s:.3f} s"
        assert len(refusal.value.message) < 300, description
        num_files += 1
    assert num_files > 80


def test_values_that_overflow_in_the_models_dtype_are_refused(backbone: Backbone) -> None:
    half = tiny_backbone(seed=7)
    half.model.to(torch.float16)
    try:
        rows = torch.full((2, WIDTH), 70_000.0)
        read_upload(safetensors.torch.save({NAME: rows}), backbone)
        with pytest.raises(InvalidInput, match="float16"):
            read_upload(safetensors.torch.save({NAME: rows}), half)
    finally:
        half.model.to(torch.float32)


def require_refusal_or_truth(data: bytes, backbone: Backbone) -> bool:
    """What is accepted must be what the safetensors library reads, finite and of the right shape."""
    try:
        prompt = read_upload(data, backbone)
    except InvalidInput:
        return False
    expected = safetensors.torch.load(data)
    assert list(expected) == [NAME]
    assert prompt.rows is not None
    assert prompt.rows.shape[1] == WIDTH
    assert torch.isfinite(prompt.rows).all()
    assert torch.equal(prompt.rows, expected[NAME].float())
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    mutated = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        position = rng.randrange(min(len(mutated), rng.choice([8, 140, 140, len(mutated)])) or 1)
        kind = rng.randrange(6)
        if kind == 0:
            mutated[position] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutated[position] = rng.choice(b'{}[]",:0123456789eE+-. \0\xffF\\u')
        elif kind == 2:
            del mutated[position : position + rng.choice([1, 2, 8, 64])]
        elif kind == 3:
            mutated[position:position] = rng.choice(
                [b"0", b",", b"[", b'"a":1,', b"\\u0070", bytes(4), b'"__metadata__":{},']
            )
        elif kind == 4:
            span = mutated[position : position + rng.randrange(1, 64)]
            mutated[position:position] = span
        else:
            mutated += rng.randbytes(rng.choice([1, 4, 128]))
        if not mutated:
            break
    if rng.random() < 0.3 and len(mutated) > 8:
        end = bytes(mutated).rfind(b"}", 8, 400) + 1
        mutated[:8] = max(0, end - 8).to_bytes(8, "little")
    return bytes(mutated)


@pytest.mark.timeout(0)
def test_no_mutations_of_a_good_file_crash_or_enter_as_anything_but_what_they_say(backbone: Backbone) -> None:
    rng = random.Random(20_261_123)
    seeds = [good_file(4), good_file(1), good_file(4, dtype=torch.bfloat16), good_file(3, dtype=torch.float16)]
    num_accepted = sum(require_refusal_or_truth(mutate(rng.choice(seeds), rng), backbone) for _ in range(NUM_MUTATIONS))
    assert 0 < num_accepted < NUM_MUTATIONS / 2


@settings(max_examples=60, deadline=None)
@given(
    header=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.sampled_from([NAME, "F32", 0, 512, 4, 32]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([NAME, "__metadata__", "dtype", "shape", "data_offsets"]) | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_header_crashes_the_reader(header: object) -> None:
    text = json.dumps(header).encode()
    require_refusal_or_truth(len(text).to_bytes(8, "little") + text + bytes(512), tiny_backbone())


# --- other programs' files


def test_a_lone_safetensors_file_is_embeddings_or_keys_and_values_by_its_width(
    backbone: Backbone, tmp_path: Path
) -> None:
    for kind in (PromptKind.EMBEDDINGS, PromptKind.KV):
        path = tmp_path / f"{kind}.safetensors"
        rows = random_rows(backbone, kind=kind)
        safetensors.torch.save_file({NAME: rows.double()}, path)
        prompt = read_checkpoint(path, backbone)
        assert prompt.kind is kind
        assert torch.equal(prompt.rows, rows)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_a_npy_matrix_is_read_in_any_float_width_and_byte_order(backbone: Backbone, tmp_path: Path, dtype: str) -> None:
    rows = random_rows(backbone, 3).half().float()
    np.save(tmp_path / "prompt.npy", rows.numpy().astype(dtype))
    assert torch.equal(read_checkpoint(tmp_path / "prompt.npy", backbone).rows, rows)
    assert describe_checkpoint(tmp_path / "prompt.npy") == {"source": "npy", "file": "prompt.npy"}


def test_a_npy_matrix_in_column_order_keeps_its_rows(backbone: Backbone, tmp_path: Path) -> None:
    rows = random_rows(backbone, 3)
    np.save(tmp_path / "prompt.npy", np.asfortranarray(rows.numpy()))
    assert torch.equal(read_checkpoint(tmp_path / "prompt.npy", backbone).rows, rows)


def test_a_npy_file_with_objects_is_refused_without_running_them(backbone: Backbone, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    np.save(tmp_path / "prompt.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInput):
        read_checkpoint(tmp_path / "prompt.npy", backbone)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\x93NUMPY\x01\x00\xff\xff{", b"hello"])
def test_what_is_not_an_npy_file_is_refused(backbone: Backbone, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prompt.npy").write_bytes(content)
    with pytest.raises(InvalidInput):
        read_checkpoint(tmp_path / "prompt.npy", backbone)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 31), "f4"), np.zeros(32, "f4"), np.zeros((2, 32), "i4"), np.full((2, 32), np.nan, "f4")]
)
def test_a_npy_matrix_that_does_not_fit_is_refused(backbone: Backbone, tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "prompt.npy", array)
    with pytest.raises(InvalidInput):
        read_checkpoint(tmp_path / "prompt.npy", backbone)


@pytest.mark.parametrize("name", ["decoder.pt", "adapter_model.bin", "x.ckpt", "x.pkl"])
def test_a_pickle_is_never_opened_and_the_refusal_says_how_to_convert_it(
    backbone: Backbone, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(InvalidInput, match="save_file"):
        read_checkpoint(tmp_path / name, backbone)


@pytest.mark.parametrize("name", ["missing", "missing.npy", "missing.safetensors", "x.json"])
def test_a_path_that_is_not_there_or_of_no_known_form_is_refused(backbone: Backbone, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        read_checkpoint(tmp_path / name, backbone)


def test_the_registry_package_loads_no_pickle_and_no_model_by_name() -> None:
    import app.registry

    sources = "".join(path.read_text() for path in Path(app.registry.__path__[0]).rglob("*.py"))
    calls = sources.replace("torch.load(sys.argv", "")
    assert not [name for name in ("torch.load(", "pickle.", "import pickle", "from_pretrained(") if name in calls]


# --- real files


def test_the_ibm_adapter_is_served_by_the_model_of_its_width() -> None:
    folder = shared_file("prompts/ibm-tgis/tinyllama_peft_adapter")
    backbone = real_backbone("stories260K")
    prompt = read_checkpoint(folder / "adapter_model.safetensors", backbone)
    assert (prompt.kind, prompt.num_virtual_tokens) == (PromptKind.EMBEDDINGS, 8)
    assert torch.equal(prompt.rows, safetensors.torch.load_file(folder / "adapter_model.safetensors")[NAME])
    with pytest.raises(InvalidInput, match=r"adapter_config\.json"):
        read_checkpoint(folder, backbone)


def test_a_prompt_of_one_model_is_refused_by_another_of_the_same_width() -> None:
    path = shared_file("prompts/ibm-tgis/tinyllama_peft_adapter/adapter_model.safetensors")
    prompt = read_checkpoint(path, real_backbone("stories260K"))
    assert real_backbone("llama2xs").hidden_size == real_backbone("stories260K").hidden_size
    with pytest.raises(BackboneMismatch, match="llama2xs"):
        require_fit(prompt, real_backbone("llama2xs"))


@pytest.mark.parametrize("task", ["sst2", "mrpc", "rte"])
def test_googles_released_prompts_of_norm_1400_are_read_and_refused_only_by_width(
    task: str, backbone: Backbone
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support.models import byte_tokenizer

    path = shared_file(f"prompts/google-prompt-tuning/t5_1_1_lm100k_base-{task}.npy")
    config = LlamaConfig(
        vocab_size=259, hidden_size=768, intermediate_size=16, num_hidden_layers=1, num_attention_heads=8
    )
    wide = Backbone.from_model(LlamaForCausalLM(config), byte_tokenizer(), name="wide")
    prompt = read_checkpoint(path, wide)
    assert (prompt.num_virtual_tokens, prompt.rows.shape[1]) == (100, 768)
    assert np.array_equal(prompt.rows.numpy(), np.load(path, allow_pickle=False))
    assert "norm" in norm_warnings(prompt, wide)[0]
    with pytest.raises(InvalidInput, match="32"):
        read_checkpoint(path, backbone)


def test_a_float64_npy_of_google_becomes_float32() -> None:
    path = shared_file("prompts/google-prompt-tuning/testdata-prompt_5x256.npy")
    with pytest.raises(InvalidInput, match="64"):
        read_checkpoint(path, real_backbone("stories260K"))


def test_ibms_pickles_are_refused_unopened() -> None:
    backbone = real_backbone("stories260K")
    with pytest.raises(InvalidInput, match="pickle"):
        read_checkpoint(shared_file("prompts/ibm-tgis/tinyllama/decoder.pt"), backbone)
    with pytest.raises(InvalidInput, match="token_dim is 1024, but stories260K needs 64"):
        read_checkpoint(shared_file("prompts/vllm-tgis-adapter"), backbone)


def test_an_export_is_read_back_as_the_same_prompt(backbone: Backbone, tmp_path: Path) -> None:
    for kind in (PromptKind.EMBEDDINGS, PromptKind.KV):
        prompt = random_prompt(backbone, kind=kind)
        write_checkpoint(tmp_path / kind, prompt, backbone)
        assert read_checkpoint(tmp_path / kind, backbone).digest == prompt.digest
