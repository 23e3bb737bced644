"""Backbones of several widths, pre-trained alike: the same recipe, tokenizer, corpus and number of tokens."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from research.demo.pretrain import Recipe, train
from research.demo.token_stream import prepare

SAVE_EVERY_S = 300.0
ASKING = replace(Recipe(), batch_tokens=4096, cue_share=0.7, decay_cue_share=0.7, answer_weight=5.0)
"""Most of the tokens ask and answer: of few tokens, these make a backbone that a prompt can steer soonest."""


@dataclass(frozen=True)
class Size:
    """Attributes: name: parameters, tied embeddings counted once. recipe: the demo backbone's but for the shape."""

    name: str
    recipe: Recipe


def _narrower(hidden_size: int, intermediate_size: int, num_heads: int, num_kv_heads: int) -> Recipe:
    return replace(
        ASKING,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
    )


SIZES = (
    Size("0.3M", _narrower(48, 128, num_heads=2, num_kv_heads=1)),
    Size("0.9M", _narrower(104, 288, num_heads=4, num_kv_heads=2)),
    Size("2M", _narrower(168, 464, num_heads=4, num_kv_heads=2)),
    Size("4M", ASKING),
)
"""From the smallest; the last has the demo backbone's shape. Depth and vocabulary are the same: width is what grows."""


def prepare_tokens(work: Path, data: Path) -> Path:
    """The folder of token streams and tokenizer, made unless it is there. Takes minutes.

    Args: data: folder with corpora/ and tasks/.
    """
    tokens, recipe = work / "tokens", Recipe()
    if not (tokens / "counts.json").exists():  # written last
        tokens.mkdir(parents=True, exist_ok=True)
        prepare(data, tokens, recipe.vocab_size, recipe.max_position, recipe.seed)
    return tokens


def pretrain(size: Size, work: Path, tokens: Path, num_tokens: int) -> Path:
    """The folder of the backbone in Hugging Face layout; continues where an interrupted call stopped."""
    decay_at, num_steps = schedule(size.recipe, num_tokens)
    seen = num_steps * size.recipe.batch_tokens
    folder = work / f"{size.name}-{seen}"  # a checkpoint belongs to its schedule
    done = folder / "pretrained.json"
    if done.exists():
        return folder / "export"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in [*tokens.glob("*.npy"), tokens / "tokenizer"]:
        link = folder / entry.name
        if not link.is_symlink():
            link.symlink_to(entry.resolve())
    train(folder, size.recipe, num_steps, decay_at, SAVE_EVERY_S)
    report = {"num_tokens": seen, "held_out_nats": _held_out_nats(folder), "recipe": asdict(size.recipe)}
    write_json(done, report)
    return folder / "export"


def schedule(recipe: Recipe, num_tokens: int) -> tuple[int, int]:
    """(step at which the learning rate starts to fall, steps in all) for about that many tokens."""
    decay_at = max(1, round(num_tokens / recipe.batch_tokens / (1 + recipe.decay_share)))
    return decay_at, decay_at + max(1, int(recipe.decay_share * decay_at))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def _held_out_nats(folder: Path) -> dict[str, float]:
    """Of the text and the cues, as the last line of the log that has them says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found: dict[str, float] = next(line["held_out_nats"] for line in reversed(lines) if "held_out_nats" in line)
    return found
