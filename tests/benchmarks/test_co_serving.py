"""Load is what it says, and the server that is measured works on a job only when it should."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from benchmarks.co_serving import DEMO, MAX_TOKENS, MIN_TOKENS, NUM_NEW_TOKENS, PHASES, Texts, measure_co_serving
from benchmarks.load import Answer, _arrivals


def test_arrivals_have_the_rate_and_are_the_same_for_the_same_seed() -> None:
    moments = list(_arrivals(rate=50, duration_s=100, seed=3))
    assert len(moments) == pytest.approx(5000, rel=0.05)
    assert moments == sorted(moments)
    assert moments == list(_arrivals(rate=50, duration_s=100, seed=3))


def test_an_answer_counts_from_when_its_request_was_due() -> None:
    answer = Answer(due_s=1.0, token_s=(1.5, 1.75, 2.75), ended_s=3.0)
    assert (answer.latency_s, answer.first_token_s, answer.gaps_s) == (2.0, 0.5, [0.25, 1.0])


def test_texts_have_the_tokens_that_the_report_says() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    examples = [json.loads(line) for line in Texts().examples(50).splitlines()]
    lengths = [len(tokenizer(example["input"], add_special_tokens=False)["input_ids"]) for example in examples]
    assert min(lengths) >= MIN_TOKENS - 2
    assert max(lengths) <= MAX_TOKENS + 2
    assert len({example["target"] for example in examples}) >= 2


@pytest.mark.slow
def test_a_rehearsal_answers_everybody_and_lends_the_device_to_jobs_alone() -> None:
    part = measure_co_serving(lambda line: None, num_rounds=1, round_s=2.0, num_examples=60)
    assert set(part.phases) == set(PHASES)
    for name, phase in part.phases.items():
        assert all(len(answer.token_s) >= NUM_NEW_TOKENS for answer in phase.answers)
        assert (phase.share > 0) == (name == "half, with a job") or name == "full, with a job"
    assert part.alone_share > 0.1
