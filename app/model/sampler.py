"""Sampler: from logits to token ids, each row by its own SamplingParams, all rows at once.

Nothing here waits for the device: what is computed stays there until it is read.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.model.kv_cache import to_device
from app.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sequence that wants a token.

    Attributes:
        seed, num_generated: together they fix the row's random number, so a preempted sequence continues as it was.
        prompt_ids, generated_ids: what penalties look at; empty if there are none.
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


def sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """Choose a token for each row: (num_rows,) int64 on the device.

    Args:
        logits: (num_rows, vocab_size) float32; not changed.
    """
    if all(row.params.is_greedy and not row.params.has_penalties and not row.params.logit_bias for row in rows):
        return logits.argmax(-1)
    changed = _penalize(logits, rows)
    greedy = changed.argmax(-1)
    chosen = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    if chosen:
        index = to_device(chosen, logits.device)
        greedy.index_copy_(0, index, _draw(changed.index_select(0, index), [rows[i] for i in chosen]))
    return greedy


def draw_among(log_weights: Sequence[float], params: SamplingParams, seed: int) -> int:
    """Draw a place of a list as a token is drawn from a vocabulary: temperature, top-k, min-p and top-p, in that order.

    Args:
        log_weights: natural logarithms, up to a constant.
        params: biases and penalties, which are of tokens, must be silent.
    """
    assert not params.logit_bias
    assert not params.has_penalties
    row = SampleRow(params, seed, num_generated=0, prompt_ids=(), generated_ids=())
    return int(sample(torch.tensor([log_weights], dtype=torch.float32), [row])[0])


class LogprobsOf:
    """What each of some rows gives to its token and to the alternatives it wants, computed now and read later.

    Args:
        logits: (num_rows, vocab_size) float32.
        token_ids: (num_rows,) int64 on the device of `logits`.
        counts: alternatives for each row; `logprob_token_ids` of its params replace them if given.

    Attributes:
        tensors: to be copied to the host and given to `read`.
    """

    def __init__(
        self, logits: torch.Tensor, token_ids: torch.Tensor, params: Sequence[SamplingParams], counts: Sequence[int]
    ) -> None:
        self._params = params
        self._counts = counts
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(max(counts), logits.shape[1]))
        width = max(len(each.logprob_token_ids) for each in params)
        asked = [[*each.logprob_token_ids, *[0] * (width - len(each.logprob_token_ids))] for each in params]
        asked_values = logprobs.gather(1, to_device(asked, logits.device)) if width else logprobs[:, :0]
        self.tensors = (token_ids, logprobs.gather(1, token_ids[:, None])[:, 0], values, ids, asked_values)

    def read(self, tensors: Sequence[torch.Tensor]) -> list[TokenLogprob]:
        """Args: tensors: the same on the host."""
        columns = zip(self._params, self._counts, *(tensor.tolist() for tensor in tensors), strict=True)
        return [
            TokenLogprob(own_id, own, _pairs_asked(params, asked) or tuple(zip(ids[:count], values, strict=False)))
            for params, count, own_id, own, values, ids, asked in columns
        ]


def _pairs_asked(params: SamplingParams, values: Sequence[float]) -> tuple[tuple[int, float], ...]:
    pairs = zip(params.logprob_token_ids, values, strict=False)
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _penalize(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """A copy of the logits with each row's biases and penalties (OpenAI's formula; Keskar et al. 2019, section 4.1)."""
    changed = logits.clone()
    for i, row in enumerate(rows):
        params = row.params
        if params.has_penalties:
            _penalize_row(changed[i], row)
        if params.logit_bias:
            ids = to_device(list(params.logit_bias), logits.device)
            changed[i].index_add_(0, ids, to_device(list(params.logit_bias.values()), logits.device, torch.float32))
    return changed


def _penalize_row(logits: torch.Tensor, row: SampleRow) -> None:
    params, device = row.params, logits.device
    if params.repetition_penalty != 1.0:
        seen = to_device(sorted({*row.prompt_ids, *row.generated_ids}), device)
        values = logits.index_select(0, seen)
        changed = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        logits.index_copy_(0, seen, changed)
    if row.generated_ids and (params.presence_penalty or params.frequency_penalty):
        id_to_count = Counter(row.generated_ids)
        penalties = [params.presence_penalty + params.frequency_penalty * count for count in id_to_count.values()]
        logits.index_add_(
            0, to_device(list(id_to_count), device), to_device(penalties, device, torch.float32), alpha=-1
        )


def _draw(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """Draw from the truncated distributions: (num_rows,) int64.

    The order of truncation is vLLM's: temperature, then top-k, min-p and top-p (Holtzman et al. 2020, section 3.1)
    on what is left. The number is drawn on the host from the row's seed, so it does not depend on the batch or device.
    """
    device = logits.device
    temperature = to_device([row.params.temperature for row in rows], device, torch.float32)
    ordered, ids = (logits / temperature[:, None].clamp(min=1e-5)).sort(dim=-1, descending=True, stable=True)
    limits = to_device([row.params.top_k or logits.shape[1] for row in rows], device)
    ordered.masked_fill_(torch.arange(logits.shape[1], device=device) >= limits[:, None], -math.inf)
    probabilities = ordered.softmax(-1)
    min_p = to_device([row.params.min_p for row in rows], device, torch.float32)
    probabilities = probabilities.masked_fill(probabilities < probabilities[:, :1] * min_p[:, None], 0.0)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    cumulative = probabilities.cumsum(-1)
    top_p = to_device([row.params.top_p for row in rows], device, torch.float32)
    probabilities = probabilities.masked_fill(cumulative - probabilities >= top_p[:, None], 0.0)
    cumulative = probabilities.double().cumsum(-1)
    numbers = to_device([uniform(row.seed, row.num_generated) for row in rows], device, torch.float64)
    places = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)
    last = ((probabilities > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
    return ids.gather(1, torch.minimum(places, last))[:, 0]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
