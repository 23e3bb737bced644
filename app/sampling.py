"""SamplingParams: how the next token of a sequence is chosen and when the sequence ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.errors import InvalidInput

MAX_LOGPROBS = 20
MAX_STOP = 4
MAX_STOP_CHARS = 64
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 300
# Logits are float32: a smaller share would round to zero, and a smaller divisor would make them infinite.
MIN_TOP_P = 1e-6
MIN_REPETITION_PENALTY = 0.01


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Names, ranges and meanings are OpenAI's; `top_k`, `min_p`, `repetition_penalty` and the rest are vLLM's.

    Attributes:
        max_tokens: at most this many are generated; 0 generates nothing (useful with `prompt_logprobs`).
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set with at least this probability (Holtzman et al. 2020).
        min_p: keep tokens with at least this fraction of the most likely token's probability (Nguyen et al. 2024).
        presence_penalty, frequency_penalty: subtracted from the logits of tokens already generated.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen (Keskar et al. 2019).
        logit_bias: token id to a value added to its logit.
        seed: the same seed, prompt and parameters give the same tokens, whatever else is in the batch.
        stop: strings that end the text; not part of the text unless `include_stop_str_in_output`.
        stop_token_ids: ids that end the text, in addition to the model's own end-of-sequence ids.
        ignore_eos: continue after an end-of-sequence token.
        skip_special_tokens: leave the tokenizer's special tokens out of the text.
        logprobs: number of alternatives to report for each generated token; None reports nothing, 0 only the token.
        prompt_logprobs: the same for each token of the text before the generated one.
        logprob_token_ids: report the log-probabilities of exactly these ids instead of the most likely ones.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_k", self.top_k, 0, 2**31 - 1)
        _check_range("top_p", self.top_p, MIN_TOP_P, 1.0)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 10.0)
        if self.seed is not None:
            _check_range("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            _check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _check_stop(self.stop)
        _check_count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        _check_count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS)
        for value in self.logit_bias.values():
            _check_range("logit_bias", value, -100.0, 100.0)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidInput(f"{name} must be at least {low:g} and at most {high:g}", param=name)


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidInput(f"{name} may have at most {limit} entries", param=name)


def _check_stop(stop: tuple[str, ...]) -> None:
    _check_count("stop", len(stop), MAX_STOP)
    if any(not text or len(text) > MAX_STOP_CHARS for text in stop):
        raise InvalidInput(f"each stop string must have 1 to {MAX_STOP_CHARS} characters", param="stop")
