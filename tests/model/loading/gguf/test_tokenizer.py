"""The tokenizer in a .gguf file's header encodes as the one that it was written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from app.model.loading.gguf.file import GgufFile
from app.model.loading.gguf.tokenizer import LLAMA3_CUT, QWEN2_CUT, make_tokenizer
from tests.support.gguf_files import CHAT_TEMPLATE, about_tokenizer, build_model, byte_level, write_gguf

TEXTS = [
    "",
    " ",
    "a",
    "The tax on fuel",
    "  two  spaces,  \t tabs\n\n\nlines \n ",
    "it's 2024: 12 345 678 members' 3rd vote (50%)!",
    "naïve café, straße, дом, 東京 🙂\u200d",
    "a\n\n1 and  2",
    "<s>x</s>",
    "WE'LL they'll\r\n\r\n x\u00a0y",
]
SPACE = "\u2581"


def bytes_after(*steps: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


PRE_TO_CUT = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": bytes_after(split(LLAMA3_CUT)),
    "qwen2": bytes_after(split(QWEN2_CUT)),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build_model("llama")


def read(path: Path) -> PreTrainedTokenizerFast:
    return make_tokenizer(GgufFile.read(path))


@pytest.mark.parametrize("pre", PRE_TO_CUT)
def test_texts_become_the_tokens_of_the_original_and_texts_again(
    pre: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    original = byte_level(PRE_TO_CUT[pre])
    write_gguf(tmp_path / "tiny.gguf", model, metadata=about_tokenizer(original, pre))
    tokenizer = read(tmp_path / "tiny.gguf")
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == [0, *original.encode(text).ids], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("<s>", "").replace("</s>", "")


def test_the_template_and_the_special_tokens_are_the_files(model: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", model)
    tokenizer = read(tmp_path / "tiny.gguf")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "user: hi\nassistant:"
    assert len(tokenizer) == 320


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"add_bos_token": False}, lambda ids: ids),
        ({"add_bos_token": None}, lambda ids: ids),
        ({"add_bos_token": None, "pre": "llama-bpe"}, lambda ids: [0, *ids]),
        ({"add_bos_token": False, "add_eos_token": True}, lambda ids: [*ids, 1]),
    ],
)
def test_first_and_last_tokens_are_added_as_the_header_says(
    changes: dict[str, Any], wanted: Any, model: PreTrainedModel, tmp_path: Path
) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    write_gguf(tmp_path / "tiny.gguf", model, metadata=metadata)
    assert read(tmp_path / "tiny.gguf")("tax")["input_ids"] == wanted(byte_level().encode("tax").ids)


def test_a_token_the_user_defined_is_one_token_and_is_shown(model: PreTrainedModel, tmp_path: Path) -> None:
    about = about_tokenizer(byte_level())
    about["tokenizer.ggml.tokens"][319] = "<call the tool>"
    about["tokenizer.ggml.token_type"][319] = 4
    about["tokenizer.ggml.merges"] = about["tokenizer.ggml.merges"][:-1]
    write_gguf(tmp_path / "tiny.gguf", model, metadata=about)
    tokenizer = read(tmp_path / "tiny.gguf")
    ids = tokenizer("a<call the tool>b")["input_ids"]
    assert 319 in ids
    assert len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<call the tool>b"


def sentencepiece() -> dict[str, Any]:
    """A vocabulary with scores, all bytes to fall back on, and no merges."""
    pieces = [
        SPACE,
        "t",
        "h",
        "e",
        "a",
        "x",
        f"{SPACE}t",
        "he",
        f"{SPACE}the",
        "ta",
        f"{SPACE}ta",
        f"{SPACE}tax",
        SPACE * 2,
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokens += [f"[UNUSED{i}]" for i in range(320 - len(tokens))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(320)],
        "tokenizer.ggml.token_type": kinds + [5] * (320 - len(kinds)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_bos_token": None,
    }


def test_a_vocabulary_with_scores_is_merged_by_them(model: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", model, metadata=sentencepiece())
    tokenizer = read(tmp_path / "tiny.gguf")
    assert tokenizer.tokenize("the tax") == [f"{SPACE}the", f"{SPACE}tax"]
    assert tokenizer("é")["input_ids"] == [1, 3 + 256, 3 + 0xC3, 3 + 0xA9]
    for text in TEXTS[2:-2]:
        decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        assert decoded.lstrip(" ") == text.lstrip(" ")  # a first space is taken for the one that is added


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.24"), reason="its tokenizers were others then")
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "spm", "phi3", "gemma3_text"])
def test_the_tokens_equal_those_of_transformers_own_reader(pre: str, tmp_path: Path) -> None:
    is_byte_level = pre in PRE_TO_CUT
    metadata = about_tokenizer(byte_level(PRE_TO_CUT[pre]), pre) if is_byte_level else sentencepiece()
    model = build_model(pre if pre in ("phi3", "gemma3_text") else "llama")
    write_gguf(tmp_path / "tiny.gguf", model, metadata=metadata)
    own, theirs = read(tmp_path / "tiny.gguf"), AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for text in TEXTS:
        assert own(text)["input_ids"] == theirs(text)["input_ids"], text
        assert own.decode(own(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])
