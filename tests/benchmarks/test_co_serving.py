"""The texts of co-serving are what its report says, and arrivals come at the rate that was asked for."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from app.settings import DEMO_BACKBONE
from benchmarks.load import Answer, arrivals
from benchmarks.parts.co_serving import MAX_TOKENS, MIN_TOKENS, Texts


def test_arrivals_have_the_rate_and_are_the_same_for_the_same_seed() -> None:
    moments = list(arrivals(rate=50, duration_s=100, seed=3))
    assert len(moments) == pytest.approx(5000, rel=0.05)
    assert moments == sorted(moments)
    assert moments == list(arrivals(rate=50, duration_s=100, seed=3))


def test_an_answer_counts_from_when_its_request_was_due() -> None:
    answer = Answer(due_s=1.0, token_s=(1.5, 1.75, 2.75), ended_s=3.0)
    assert (answer.latency_s, answer.first_token_s, answer.gaps_s) == (2.0, 0.5, [0.25, 1.0])


def test_texts_have_the_tokens_that_the_report_says() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_BACKBONE)
    examples = [json.loads(line) for line in Texts().examples(50).splitlines()]
    lengths = [len(tokenizer(example["input"], add_special_tokens=False)["input_ids"]) for example in examples]
    assert min(lengths) >= MIN_TOKENS - 2
    assert max(lengths) <= MAX_TOKENS + 2
    assert len({example["target"] for example in examples}) >= 2
