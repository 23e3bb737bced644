"""The tokenizer of the demo backbone, and its two streams of training tokens: plain text and texts with cues."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from research.demo.corpus import PART_TO_BYTES, Document, passages, read_corpora, speak_plainly
from research.demo.cue_layout import BOS, EOS, split_answers
from research.demo.cues import CueWriter

PAD = "<pad>"
SPECIAL_TOKENS = [BOS, EOS, PAD]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}{{ '\n' if not loop.last }}"
    "{% endfor %}{{ '\nAssistant:' if add_generation_prompt }}"
)
"""Roles as plain words, as in one of the cues; it opens with `<s>`, so encode its text without special tokens."""
TOKENIZER_SAMPLE_BYTES = 30_000_000
CUE_BYTES = 36_000_000
TITLE_SHARE, PLAIN_SHARE = 0.5, 0.06


def prepare(
    data: Path, work: Path, vocab_size: int, max_position: int, seed: int, tokenizer_folder: Path | None = None
) -> None:
    """Writes `tokenizer/`, the two streams and `counts.json` into `work`.

    A stream is `NAME.npy`, uint16 token ids, and `NAME_answers.npy`, which of them belong to an answer.

    Args:
        tokenizer_folder: of a backbone that is to be trained further; without it a tokenizer is trained.
    """
    rng = random.Random(seed)
    corpora = read_corpora(data / "corpora", data / "tasks" / "wikinews_headline")
    parts = {part: passages(documents, PART_TO_BYTES[part], rng) for part, documents in corpora.items()}
    texts = [_as_text(passage, rng) for documents in parts.values() for passage in documents]
    rng.shuffle(texts)
    writer = CueWriter(parts, data / "tasks", seed)
    cues = list(_up_to(CUE_BYTES, iter(writer.write, None)))
    rng.shuffle(cues)
    if tokenizer_folder:
        tokenizer = copy_tokenizer(tokenizer_folder, work / "tokenizer")
    else:
        sample = (split_answers(cue)[0] for cue in cues)
        tokenizer = train_tokenizer(
            [*_up_to(TOKENIZER_SAMPLE_BYTES, iter(texts)), *_up_to(6_000_000, sample)], vocab_size
        )
        save_tokenizer(tokenizer, work / "tokenizer", max_position)
    counts = {"documents": {part: len(documents) for part, documents in parts.items()}}
    for name, stream in (("text", texts), ("cues", cues)):
        tokens, is_answer = encode(tokenizer, stream)
        np.save(work / f"{name}.npy", tokens)
        np.save(work / f"{name}_answers.npy", is_answer)
        counts[name] = {
            "tokens": len(tokens),
            "answer_tokens": int(is_answer.sum()),
            "bytes": sum(len(text.encode()) for text in stream),
        }
    (work / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with ids 0, 1, 2 for `<s>`, `</s>`, `<pad>`; encoding begins with `<s>` and adds no end."""
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


def copy_tokenizer(folder: Path, copy: Path) -> Tokenizer:
    """Copies the tokenizer's two files and reads them."""
    copy.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, copy / name)
    return Tokenizer.from_file(str(copy / "tokenizer.json"))


def encode(tokenizer: Tokenizer, texts: list[str], num_per_call: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """The token ids of all texts in a row, uint16, and which of them are part of an answer or end one, bool.

    `<s>` and `</s>` are written out in the texts; answers are marked as `split_answers` reads them.
    """
    ids, answers = [], []
    for start in range(0, len(texts), num_per_call):
        split = [split_answers(text) for text in texts[start : start + num_per_call]]
        rows = tokenizer.encode_batch([text for text, _ in split], add_special_tokens=False)
        for row, (_, spans) in zip(rows, split, strict=True):
            ids.append(np.array(row.ids, dtype=np.uint16))
            answers.append(_in_spans(row.offsets, spans))
    is_answer = np.concatenate(answers)
    is_end = np.concatenate(ids) == tokenizer.token_to_id(EOS)
    is_answer[1:] |= is_end[1:] & is_answer[:-1]
    return np.concatenate(ids), is_answer


def _in_spans(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> np.ndarray:
    """Which tokens end inside one of the spans (characters, in order)."""
    ends = np.array([end for _, end in offsets], dtype=np.int64)
    is_inside = np.zeros(len(ends), dtype=bool)
    for first, last in spans:
        is_inside |= (ends > first) & (ends <= last)
    return is_inside


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
