"""The tokenizer of the demo backbone, and its two streams of training tokens: plain text and texts with cues."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from app.demo.corpus import PART_TO_BYTES, Document, passages, read_corpora, speak_plainly
from app.demo.cue_layout import BOS, EOS
from app.demo.cues import CueWriter

PAD = "<pad>"
SPECIAL_TOKENS = [BOS, EOS, PAD]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}{{ '\n' if not loop.last }}"
    "{% endfor %}{{ '\nAssistant:' if add_generation_prompt }}"
)
"""Roles as plain words, as in one of the cues; it opens with `<s>`, so encode its text without special tokens."""
TOKENIZER_SAMPLE_BYTES = 30_000_000
CUE_BYTES = 26_000_000
TITLE_SHARE, PLAIN_SHARE = 0.5, 0.06


def prepare(data: Path, work: Path, vocab_size: int, max_position: int, seed: int) -> None:
    """Writes `tokenizer/`, `text.npy`, `cues.npy` (uint16 token ids) and `counts.json` into `work`."""
    rng = random.Random(seed)  # noqa: S311, a sample and no secret
    corpora = read_corpora(data / "corpora", data / "tasks" / "wikinews_headline")
    parts = {part: passages(documents, PART_TO_BYTES[part], rng) for part, documents in corpora.items()}
    texts = [_as_text(passage, rng) for documents in parts.values() for passage in documents]
    rng.shuffle(texts)
    writer = CueWriter(parts, data / "tasks", seed)
    cues = list(_up_to(CUE_BYTES, iter(writer.write, None)))
    rng.shuffle(cues)
    tokenizer = train_tokenizer(
        [*_up_to(TOKENIZER_SAMPLE_BYTES, iter(texts)), *_up_to(6_000_000, iter(cues))], vocab_size
    )
    save_tokenizer(tokenizer, work / "tokenizer", max_position)
    counts = {"documents": {part: len(documents) for part, documents in parts.items()}}
    for name, stream in (("text", texts), ("cues", cues)):
        tokens = encode(tokenizer, stream)
        np.save(work / f"{name}.npy", tokens)
        counts[name] = {"tokens": len(tokens), "bytes": sum(len(text.encode()) for text in stream)}
    (work / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with ids 0, 1, 2 for `<s>`, `</s>`, `<pad>`; encoding puts `<s>` in front and nothing behind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_position: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json for transformers."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_position,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder, save_jinja_files=False)


def encode(tokenizer: Tokenizer, texts: list[str], num_per_call: int = 2000) -> np.ndarray:
    """The token ids of all texts in a row, uint16; `<s>` and `</s>` are written out in the texts."""
    blocks = []
    for start in range(0, len(texts), num_per_call):
        rows = tokenizer.encode_batch_fast(texts[start : start + num_per_call], add_special_tokens=False)
        blocks += [np.array(row.ids, dtype=np.uint16) for row in rows]
    return np.concatenate(blocks)


def _as_text(passage: Document, rng: random.Random) -> str:
    text = passage.text
    if passage.part == "encyclopedia" and rng.random() < TITLE_SHARE:
        text = f"{passage.title}\n\n{text}"
    if rng.random() < PLAIN_SHARE:
        text = speak_plainly(text)
    return f"{BOS}{text}{EOS}"


def _up_to(max_bytes: int, texts: Iterator[str]) -> Iterator[str]:
    total = 0
    for text in texts:
        total += len(text.encode())
        if total > max_bytes:
            return
        yield text
