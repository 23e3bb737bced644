"""make_tokenizer: the fast tokenizer that a .gguf file's header describes.

Built here and not by transformers, whose way from these headers to a tokenizer changes with its versions: prompts are
bound to the file, so the same text must always be the same tokens. Tests hold it equal to transformers 5.24's. How a
text is cut before tokens are merged is as in llama.cpp (`src/llama-vocab.cpp`), which goes by a name in the header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from app.errors import InvalidInput, UnsupportedModel
from app.model.loading.gguf.file import GgufFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"
CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are matched whole in a text."""
LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_CUT = LLAMA3_CUT.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_CUT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
AS_LLAMA3 = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"}
NAME_TO_CUT = {
    **dict.fromkeys({*AS_LLAMA3, "dbrx", "smaug-bpe"}, LLAMA3_CUT),
    **dict.fromkeys({"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo"}, QWEN2_CUT),
    "tekken": TEKKEN_CUT,
}
DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Cut as GPT-2 does, after every digit was cut off."""
AS_GPT2 = {"default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "exaone4", "trillion"}
WHOLE_WORDS = {*AS_LLAMA3, "tekken"}
"""A word that is a token is that token, whatever the merges say; and a text has a first token unless told otherwise."""


def make_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """With the file's chat template, if it has one. Raises UnsupportedModel, InvalidInput."""
    from transformers import PreTrainedTokenizerFast

    header = check_tokenizer(file)
    cut = header.get("pre", "default")
    try:
        is_byte_level = header["model"] == "gpt2"
        tokenizer = _make_byte_level(header, cut) if is_byte_level else _make_sentencepiece(header, file.architecture)
        _keep_whole(tokenizer, header)
    except Exception as error:  # what tokenizers raises has no class of its own
        raise InvalidInput(f"{file.path.name} has a tokenizer that cannot be built ({error})", param="model") from error
    has_first = header.get("add_bos_token", header["model"] == "llama" or cut in WHOLE_WORDS)
    first = _named(header, "bos") if has_first else None
    last = _named(header, "eos") if header.get("add_eos_token") else None
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*filter(None, [first, "$A", last])],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last) if token],
    )
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **{name: _named(header, key) for name, key in names.items()},
    )


def _keep_whole(tokenizer: Tokenizer, header: dict[str, Any]) -> None:
    """Match the tokens that no text is merged into: those of control, and those that the model's makers defined."""
    tokens = header["tokens"]
    kinds = list(zip(tokens, header.get("token_type", [0] * len(tokens)), strict=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == USER_DEFINED])


def check_tokenizer(file: GgufFile) -> dict[str, Any]:
    """What the header says of the tokenizer, found out without transformers.

    Raises UnsupportedModel, InvalidInput: it is not one that can be built.
    """
    name, prefix = file.path.name, "tokenizer.ggml."
    header = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    tokens, kind = header.get("tokens"), header.get("model")
    if not tokens or not isinstance(tokens, list):
        raise InvalidInput(f"{name} has no tokenizer; serve the model from its folder of safetensors", param="model")
    known = {"gpt2": "merges", "llama": "scores"}
    if kind not in known:
        raise UnsupportedModel(
            f"{name} has a tokenizer of kind {kind}, which is not read from .gguf files; {' and '.join(known)} are",
            param="model",
        )
    if known[kind] not in header:
        raise InvalidInput(f"{name} lacks tokenizer.ggml.{known[kind]}, so texts cannot be encoded", param="model")
    cut = header.get("pre", "default")
    if kind == "gpt2" and cut not in {*NAME_TO_CUT, *DIGITS_APART, *AS_GPT2}:
        raise UnsupportedModel(
            f"{name} cuts texts in a way ({cut}) that is not read from .gguf files; "
            "a folder with safetensors of the same model may be served",
            param="model",
        )
    return header


def _named(header: dict[str, Any], role: str) -> str | None:
    token_id = header.get(f"{role}_token_id")
    return header["tokens"][token_id] if token_id is not None and token_id < len(header["tokens"]) else None


def _make_byte_level(header: dict[str, Any], cut: str) -> Tokenizer:
    """Tokens are spelled in GPT-2's alphabet of bytes."""
    vocabulary = {token: token_id for token_id, token in enumerate(header["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in header["merges"]]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=cut in WHOLE_WORDS))
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut not in NAME_TO_CUT)
    if cut in NAME_TO_CUT:
        split = pre_tokenizers.Split(Regex(NAME_TO_CUT[cut]), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    elif cut in DIGITS_APART:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), as_bytes])
    else:
        tokenizer.pre_tokenizer = as_bytes
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _make_sentencepiece(header: dict[str, Any], architecture: str) -> Tokenizer:
    """Merges follow from the vocabulary: by the tokens' scores, in Gemma's by their order."""
    from transformers.tokenization_utils_base import generate_merges

    tokens, is_gemma = header["tokens"], architecture == "gemma3"
    if is_gemma:  # whose file writes tokens of spaces as spaces
        tokens = [SPACE * len(token) if token.isspace() and set(token) == {" "} else token for token in tokens]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    ranks = [-token_id for token_id in range(len(tokens))] if is_gemma else header["scores"]
    merges = generate_merges(vocabulary, dict(zip(tokens, ranks, strict=True)))
    unknown = _named(header, "unknown")
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    has_space = header.get("add_space_prefix", True) and not is_gemma
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoding, *([decoders.Strip(" ", 1, 0)] if has_space else [])])
    if is_gemma:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    elif architecture == "phi3":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        scheme = "first" if has_space else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    return tokenizer
