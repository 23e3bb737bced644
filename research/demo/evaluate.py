"""Perplexity on WikiText-2 and greedy samples of a backbone: `python -m research.demo.evaluate --help`."""

from __future__ import annotations

import argparse
import gzip
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

OPENINGS = (
    "It was a dark and stormy night, and",
    "The president said on Tuesday that",
    "She is an American",
    "Text: The album was recorded in London in 1996 and released by Island Records.\nAnswer:",
)


def perplexity(model: Any, tokenizer: Any, text: str, row_tokens: int) -> dict[str, float]:
    """Loss over the whole text in rows of `<s>` and `row_tokens - 1` tokens, nothing shared between rows."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    length = row_tokens - 1
    nats = sum(_row_nats(model, [tokenizer.bos_token_id, *ids[at : at + length]]) for at in range(0, len(ids), length))
    return {
        "tokens": len(ids),
        "nats_per_token": round(nats / len(ids), 4),
        "perplexity": round(math.exp(nats / len(ids)), 2),
        "bits_per_byte": round(nats / math.log(2) / len(text.encode()), 4),
        "word_perplexity": round(math.exp(nats / len(text.split())), 1),
    }


def sample(model: Any, tokenizer: Any, opening: str, max_new_tokens: int) -> str:
    """The greedy continuation of one opening, special tokens left out."""
    row = tokenizer(opening, return_tensors="pt").input_ids
    out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(out[0, row.shape[1] :], skip_special_tokens=True))


@torch.no_grad()
def _row_nats(model: Any, row: list[int]) -> float:
    ids = torch.tensor([row])
    return cross_entropy(model(input_ids=ids[:, :-1]).logits[0].float(), ids[0, 1:], reduction="sum").item()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    for split in ("valid", "test"):
        with gzip.open(arguments.data / "corpora" / "wikitext2_valid_test" / f"{split}.txt.gz", "rt") as file:
            text = file.read()
        for row_tokens in arguments.row_tokens:
            line = {"split": split, "row_tokens": row_tokens} | perplexity(model, tokenizer, text, row_tokens)
            print(json.dumps(line), flush=True)
    for opening in OPENINGS:
        print(json.dumps({"opening": opening, "greedy": sample(model, tokenizer, opening, 60)}, ensure_ascii=False))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--data", type=Path, required=True, help="folder with corpora/")
    parser.add_argument("--row-tokens", type=int, nargs="+", default=[512, 1024])
    return parser.parse_args()


if __name__ == "__main__":
    main()
