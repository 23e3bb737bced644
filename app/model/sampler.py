"""Sampler: from logits to token ids, each row by its own SamplingParams, all rows at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sequence that wants a token.

    Attributes:
        seed, num_generated: together they fix the row's random number, so a preempted sequence goes on as it was.
        prompt_ids, generated_ids: what penalties look at; empty where there are none.
    """

    params: SamplingParams
    seed: int
    num_generated: int
    prompt_ids: Sequence[int]
    generated_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability under the model, before temperature and penalties.

    Attributes:
        top: (token_id, logprob) of the alternatives asked for, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[int]:
    """Choose a token for each row.

    Args:
        logits: (num_rows, vocab_size) float32; not changed.
    """
    if all(_is_plain_greedy(row.params) for row in rows):
        return logits.argmax(-1).tolist()
    changed = _penalise(logits, rows)
    greedy = changed.argmax(-1)
    chosen = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    if chosen:
        index = torch.tensor(chosen, device=logits.device)
        greedy[index] = _draw(changed[index], [rows[i] for i in chosen])
    return greedy.tolist()


def log_probabilities(
    logits: torch.Tensor, token_ids: Sequence[int], params: Sequence[SamplingParams], counts: Sequence[int]
) -> list[TokenLogprob]:
    """What each row gives to its token and to the alternatives it wants.

    Args:
        logits: (num_rows, vocab_size) float32.
        token_ids: one id for each row.
        counts: alternatives for each row; `logprob_token_ids` of its params stand in their place where given.
    """
    logprobs = logits.log_softmax(-1)
    ids = torch.tensor(token_ids, device=logits.device)
    own = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    width = min(max(counts, default=0), logits.shape[1])
    values, indices = logprobs.topk(width) if width else (logprobs[:, :0], logprobs[:, :0].long())
    tops = [list(zip(i, v, strict=True)) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
    return [
        TokenLogprob(token_ids[i], own[i], _asked(logprobs[i], params[i]) or tuple(tops[i][: counts[i]]))
        for i in range(len(token_ids))
    ]


def _asked(logprobs: torch.Tensor, params: SamplingParams) -> tuple[tuple[int, float], ...]:
    if not params.logprob_token_ids:
        return ()
    wanted = list(params.logprob_token_ids)
    pairs = zip(wanted, logprobs[wanted].tolist(), strict=True)
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _is_plain_greedy(params: SamplingParams) -> bool:
    return params.is_greedy and not params.has_penalties and not params.logit_bias


def _penalise(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """A copy of the logits with each row's biases and penalties (OpenAI's formula; Keskar et al. 2019, section 4.1)."""
    changed = logits.clone()
    for i, row in enumerate(rows):
        params = row.params
        if params.has_penalties:
            _penalise_row(changed[i], row)
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=logits.device)
            changed[i, ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
    return changed


def _penalise_row(logits: torch.Tensor, row: SampleRow) -> None:
    params, device = row.params, logits.device
    if params.repetition_penalty != 1.0:
        seen = torch.tensor([*row.prompt_ids, *row.generated_ids], device=device, dtype=torch.int64).unique()
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if row.generated_ids and (params.presence_penalty or params.frequency_penalty):
        ids, counts = torch.tensor(row.generated_ids, device=device).unique(return_counts=True)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * counts


def _draw(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """Draw from the truncated distributions: (num_rows,) int64.

    The order of truncation is vLLM's: temperature, then top-k, min-p and top-p (Holtzman et al. 2020, section 3.1)
    on what is left. The number is drawn on the host from the row's seed, so it does not depend on the batch or device.
    """
    device = logits.device
    temperature = torch.tensor([row.params.temperature for row in rows], device=device)
    ordered, ids = (logits / temperature[:, None].clamp(min=1e-5)).sort(dim=-1, descending=True, stable=True)
    ordered.masked_fill_(_beyond_top_k(ordered, rows), -math.inf)
    probabilities = ordered.softmax(-1)
    min_p = torch.tensor([row.params.min_p for row in rows], device=device)
    probabilities = probabilities.masked_fill(probabilities < probabilities[:, :1] * min_p[:, None], 0.0)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    cumulative = probabilities.cumsum(-1)
    top_p = torch.tensor([row.params.top_p for row in rows], device=device)
    probabilities = probabilities.masked_fill(cumulative - probabilities >= top_p[:, None], 0.0)
    cumulative = probabilities.double().cumsum(-1)
    numbers = torch.tensor([uniform(row.seed, row.num_generated) for row in rows], dtype=torch.float64, device=device)
    places = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)
    last = ((probabilities > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
    return ids.gather(1, torch.minimum(places, last))[:, 0]


def _beyond_top_k(ordered: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    vocab_size = ordered.shape[1]
    limits = [min(row.params.top_k, vocab_size) or vocab_size for row in rows]
    ranks = torch.arange(vocab_size, device=ordered.device)
    return ranks[None, :] >= torch.tensor(limits, device=ordered.device)[:, None]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
