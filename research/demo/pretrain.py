"""Pre-trains the demo backbone: `python -m research.demo.pretrain --help`.

The learning rate warms up, stays, and decays to zero (WSD; Hu et al. 2024, MiniCPM, section 4). The decay starts at
`--decay-at` or once a file named `decay` lies in the work folder. Matrices of the layers are trained with Muon
(Jordan et al. 2024), everything else with AdamW. A backbone is trained further by `prepare --tokenizer DIR` with
another seed and `train --start-from DIR`, in a work folder of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from research.demo.token_stream import prepare

NUM_HELD_OUT_TOKENS = 32_768


@dataclass(frozen=True)
class Recipe:
    """Sizes in tokens, rates per step; a step sees `batch_tokens` tokens in rows of `row_tokens`.

    The tokens of an answer count `answer_weight` times in the loss.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int = 4096
    max_position: int = 1024
    batch_tokens: int = 8192
    row_tokens: int = 256
    decay_row_tokens: int = 1024
    micro_tokens: int = 4096
    cue_share: float = 0.2
    decay_cue_share: float = 0.35
    answer_weight: float = 1.0
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    weight_decay: float = 0.05
    num_warmup_steps: int = 60
    decay_share: float = 0.2
    seed: int = 0


class TokenRows:
    """Rows of one token stream, read in order; the last tokens are held out, the rest repeats when it ends."""

    def __init__(self, work: Path, name: str) -> None:
        tokens = np.load(work / f"{name}.npy", mmap_mode="r")
        self.held_out = torch.from_numpy(tokens[-NUM_HELD_OUT_TOKENS:].astype(np.int64))
        self._tokens = tokens[:-NUM_HELD_OUT_TOKENS]
        self._is_answer = np.load(work / f"{name}_answers.npy", mmap_mode="r")
        self.num_read = 0

    def take(self, num_rows: int, row_tokens: int) -> Tensor:
        """int64 (2, num_rows, row_tokens + 1): the tokens and whether each is of an answer.

        Neighboring rows share one token.
        """
        length = num_rows * row_tokens
        start = self.num_read % (len(self._tokens) - length - 1)
        self.num_read += length
        both = (stream[start : start + length + 1].astype(np.int64) for stream in (self._tokens, self._is_answer))
        return torch.stack([torch.from_numpy(block).unfold(0, row_tokens + 1, row_tokens) for block in both])


def train(
    work: Path,
    recipe: Recipe,
    max_steps: int,
    decay_at: int | None,
    save_every_s: float,
    start_from: Path | None = None,
) -> None:
    """Trains until the decay has ended or `max_steps`; resumes from the checkpoint in `work` if there is one.

    Args:
        start_from: an export whose weights a new run starts from, with optimizers of its own.
    """
    run = Run(work, recipe, decay_at, start_from)
    run.resume()
    saved = time.monotonic()
    while not run.is_done and run.step < max_steps:
        run.advance()
        if time.monotonic() - saved > save_every_s:
            run.save()
            saved = time.monotonic()
    run.save()


class Run:
    """The state of one training run; everything that a resumed run needs is in `checkpoint.pt` (our own file)."""

    def __init__(self, work: Path, recipe: Recipe, decay_at: int | None, start_from: Path | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.work, self.recipe, self.step, self.decay_at = work, recipe, 0, decay_at
        self.streams = {name: TokenRows(work, name) for name in ("text", "cues")}
        self.model = build_model(recipe)
        if start_from:
            self.model.load_state_dict(read_weights(start_from))
        self.optimizers = build_optimizers(self.model, recipe)
        self.loss: Callable[[Tensor], Tensor] = torch.compile(self._loss, dynamic=False)

    @property
    def num_decay_steps(self) -> int:
        return max(1, int(self.recipe.decay_share * (self.decay_at or 0)))

    @property
    def is_decaying(self) -> bool:
        return self.decay_at is not None and self.step >= self.decay_at

    @property
    def is_done(self) -> bool:
        return self.is_decaying and self.step >= (self.decay_at or 0) + self.num_decay_steps

    @property
    def rate(self) -> float:
        """The share of the full learning rates at the present step."""
        if self.is_decaying:
            return 1.0 - (self.step - (self.decay_at or 0)) / self.num_decay_steps
        return min(1.0, (self.step + 1) / self.recipe.num_warmup_steps)

    def advance(self) -> None:
        """One step: gradients of all micro-batches, one update, one line of the log."""
        began = time.monotonic()
        if self.decay_at is None and (self.work / "decay").exists():
            self.decay_at = self.step
        batch = self._batch()
        total = 0.0
        for rows in batch:
            loss = self.loss(rows) / len(batch)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).item()
        for optimizer, lr in zip(self.optimizers, (self.recipe.matrix_lr, self.recipe.other_lr), strict=True):
            optimizer.param_groups[0]["lr"] = lr * self.rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._log(total, norm, time.monotonic() - began)

    def save(self) -> None:
        """Writes the checkpoint, then a usable export, each under a temporary name first."""
        state = {
            "step": self.step,
            "decay_at": self.decay_at,
            "num_read": {name: stream.num_read for name, stream in self.streams.items()},
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.work / "checkpoint.tmp")
        os.replace(self.work / "checkpoint.tmp", self.work / "checkpoint.pt")
        export(self.model, self.work / "tokenizer", self.work / "export")
        losses = {name: self.held_out_loss(name) for name in self.streams}
        self._write_line({"step": self.step, "held_out_nats": losses})

    def resume(self) -> None:
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.step, self.decay_at = state["step"], state["decay_at"]
        for name, stream in self.streams.items():
            stream.num_read = state["num_read"][name]
        self.model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)

    @torch.no_grad()
    def held_out_loss(self, name: str) -> float:
        """Mean nats per token over the stream's held-out tokens, in rows of `row_tokens`."""
        rows = self.streams[name].held_out[: NUM_HELD_OUT_TOKENS // 2].view(-1, self.recipe.row_tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return float(np.mean([mean_nats(self.model, block).item() for block in rows.split(16)]))

    def _loss(self, rows: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return mean_nats(self.model, rows[0], 1.0 + (self.recipe.answer_weight - 1.0) * rows[1, :, 1:])

    def _batch(self) -> list[Tensor]:
        """Micro-batches as `TokenRows.take` gives them, the text and the cue rows mixed evenly."""
        recipe = self.recipe
        row_tokens = recipe.decay_row_tokens if self.is_decaying else recipe.row_tokens
        num_rows = recipe.batch_tokens // row_tokens
        num_cues = round(num_rows * (recipe.decay_cue_share if self.is_decaying else recipe.cue_share))
        text = self.streams["text"].take(num_rows - num_cues, row_tokens)
        rows = torch.cat([text, self.streams["cues"].take(num_cues, row_tokens)], dim=1)
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(self.step))
        return list(rows[:, order].split(recipe.micro_tokens // row_tokens, dim=1))

    def _log(self, loss: float, norm: float, took_s: float) -> None:
        if self.step % 10 == 0:
            rate = self.recipe.batch_tokens / took_s
            tokens = sum(stream.num_read for stream in self.streams.values())
            self._write_line(
                {"step": self.step, "tokens": tokens, "nats": round(loss, 4), "norm": round(norm, 3),
                 "rate": round(self.rate, 3), "tokens_per_s": round(rate)}
            )  # fmt: skip

    def _write_line(self, line: dict[str, object]) -> None:
        print(json.dumps(line), flush=True)
        with (self.work / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def mean_nats(model: LlamaForCausalLM, rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean next-token cross-entropy (nats, float32) of int64 rows (rows, tokens + 1).

    Args:
        weights: float32 (rows, tokens), how much each predicted token counts; all alike without it.
    """
    logits = model(rows[:, :-1], use_cache=False).logits
    nats = cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="none")
    return nats.mean() if weights is None else (nats * weights.flatten()).sum() / weights.sum()


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """A float32 Llama with tied embeddings; the output matrices of every layer begin at zero."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=recipe.max_position,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)
    return model


def build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return (
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, momentum=0.95, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The float32 weights of an export, with the tied output matrix that its file leaves out."""
    weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}


def export(model: LlamaForCausalLM, tokenizer: Path, folder: Path) -> None:
    """Writes the Hugging Face layout with bfloat16 weights; the folder appears whole or not at all."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(tokenizer, temporary)
    config = model.config.to_dict() | {"dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}
    LlamaConfig(**config).save_pretrained(temporary)
    GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2).save_pretrained(temporary)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    weights.pop("lm_head.weight", None)
    save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    recipe = Recipe(**{name: getattr(arguments, name) for name in asdict(Recipe())})
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.command == "prepare":
        prepare(
            arguments.data, arguments.work, recipe.vocab_size, recipe.max_position, recipe.seed, arguments.tokenizer
        )
    else:
        (arguments.work / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
        train(
            arguments.work,
            recipe,
            arguments.max_steps,
            arguments.decay_at,
            arguments.save_every_s,
            arguments.start_from,
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "train"))
    parser.add_argument("--work", type=Path, required=True, help="folder of tokens, checkpoints, log and export")
    parser.add_argument("--data", type=Path, help="folder with corpora/ and tasks/ (prepare)")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer to keep instead of a new one (prepare)")
    parser.add_argument("--start-from", type=Path, help="folder of an export to train further (train)")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--decay-at", type=int, help="step at which the decay starts")
    parser.add_argument("--save-every-s", type=float, default=300.0)
    for name, default in asdict(Recipe()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
