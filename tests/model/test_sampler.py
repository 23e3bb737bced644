from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from app.model import sampler
from app.model.sampler import LogprobsOf, SampleRow, TokenLogprob, uniform
from app.sampling import SamplingParams

VOCAB_SIZE = 50


def make_logits(num_rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def row_of(
    params: SamplingParams,
    seed: int = 0,
    num_generated: int = 0,
    prompt_ids: tuple[int, ...] = (),
    ids: tuple[int, ...] = (),
) -> SampleRow:
    return SampleRow(params, seed, num_generated, prompt_ids, ids)


def sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[int]:
    return sampler.sample(logits, rows).tolist()


def log_probabilities(
    logits: torch.Tensor, token_ids: list[int], params: Sequence[SamplingParams], counts: Sequence[int]
) -> list[TokenLogprob]:
    asked = LogprobsOf(logits, torch.tensor(token_ids), params, counts)
    return asked.read(asked.tensors)


def plain_distribution(logits: torch.Tensor, row: SampleRow) -> dict[int, float]:
    """Token id to probability, one rule after another, as the documentation says them."""
    params = row.params
    values = {i: float(value) for i, value in enumerate(logits)}
    for i in {*row.prompt_ids, *row.generated_ids}:
        values[i] = values[i] / params.repetition_penalty if values[i] > 0 else values[i] * params.repetition_penalty
    for i, count in Counter(row.generated_ids).items():
        values[i] -= params.presence_penalty + params.frequency_penalty * count
    for i, bias in params.logit_bias.items():
        values[i] += bias
    if params.is_greedy:
        return {max(values, key=lambda i: values[i]): 1.0}
    order = sorted(values, key=lambda i: -values[i])[: params.top_k or None]
    weights = {i: math.exp((values[i] - values[order[0]]) / params.temperature) for i in order}
    kept = [i for i in order if weights[i] >= params.min_p * weights[order[0]]]
    total = sum(weights[i] for i in kept)
    nucleus, mass = [], 0.0
    for i in kept:
        if mass >= params.top_p:
            break
        nucleus.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in nucleus)
    return {i: weights[i] / total for i in nucleus}


PARAMETERS = {
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 2.0},
    "top_k": {"top_k": 5},
    "top_k beyond the vocabulary": {"top_k": 5000},
    "top_p": {"top_p": 0.6},
    "a tiny top_p": {"top_p": 1e-6},
    "min_p": {"min_p": 0.2},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.7},
    "negative frequency_penalty": {"frequency_penalty": -0.5},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "repetition_penalty below one": {"repetition_penalty": 0.5},
    "logit_bias": {"logit_bias": {3: 5.0, 4: -100.0, 7: 2}},
    "all": {
        "temperature": 1.2,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.2,
        "logit_bias": {9: 1.5},
    },
}


@pytest.mark.parametrize("settings", PARAMETERS.values(), ids=PARAMETERS)
def test_each_parameter_gives_the_distribution_of_the_plain_rules(settings: dict[str, object]) -> None:
    num_draws = 4000
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    logits = make_logits()
    row = row_of(params, prompt_ids=(1, 2), ids=(2, 5, 5, 5))
    expected = plain_distribution(logits[0], row)
    rows = [row_of(params, seed=seed, prompt_ids=(1, 2), ids=(2, 5, 5, 5)) for seed in range(num_draws)]
    drawn = Counter(sample(logits.expand(num_draws, -1), rows))
    assert set(drawn) <= set(expected)
    frequent = [i for i in expected if expected[i] * num_draws >= 5]
    chi_square = sum((drawn[i] - expected[i] * num_draws) ** 2 / (expected[i] * num_draws) for i in frequent)
    # the 99.99 % point of the chi-square distribution (Wilson and Hilferty's approximation)
    freedom = max(1, len(frequent) - 1)
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("settings", [{}, *PARAMETERS.values()])
def test_greedy_takes_the_likeliest_after_penalties(settings: dict[str, object]) -> None:
    params = SamplingParams(**{**settings, "temperature": 0.0})  # type: ignore[arg-type]
    for seed in range(20):
        logits = make_logits(seed=seed)
        row = row_of(params, prompt_ids=(1, 2), ids=(2, 5, 5))
        assert sample(logits, [row]) == list(plain_distribution(logits[0], row))


def test_of_equal_logits_greedy_takes_the_first() -> None:
    logits = torch.zeros(3, VOCAB_SIZE)
    assert sample(logits, [row_of(SamplingParams(temperature=0))] * 3) == [0, 0, 0]
    biased = SamplingParams(temperature=0, logit_bias={7: 1.0, 9: 1.0})
    assert sample(logits[:1], [row_of(biased)]) == [7]


def test_the_logits_are_not_changed() -> None:
    logits = make_logits(2)
    before = logits.clone()
    params = SamplingParams(temperature=0.7, top_p=0.5, frequency_penalty=1, logit_bias={1: 4.0})
    sample(logits, [row_of(params, ids=(1, 2)), row_of(SamplingParams(temperature=0))])
    assert torch.equal(logits, before)


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    settings = [SamplingParams(**each) for each in PARAMETERS.values()]  # type: ignore[arg-type]
    rows = [row_of(params, seed=i, num_generated=i % 4, ids=(i, i + 1)) for i, params in enumerate(settings)]
    logits = make_logits(len(rows))
    assert sample(logits, rows) == [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]


def test_every_position_of_a_seed_draws_anew_and_a_second_time_the_same() -> None:
    rows = [row_of(SamplingParams(), seed=3, num_generated=position) for position in range(60)]
    drawn = sample(torch.zeros(60, VOCAB_SIZE), rows)
    assert len(set(drawn)) > 20
    assert sample(torch.zeros(60, VOCAB_SIZE), rows) == drawn
    other = [row_of(SamplingParams(), seed=4, num_generated=position) for position in range(60)]
    assert sample(torch.zeros(60, VOCAB_SIZE), other) != drawn


def test_equal_logits_are_drawn_alike_in_every_batch() -> None:
    logits = torch.zeros(40, VOCAB_SIZE)
    rows = [row_of(SamplingParams(), seed=i) for i in range(40)]
    assert sample(logits, rows) == [sample(logits[:1], [row])[0] for row in rows]


def test_seed_and_position_fix_the_number_and_nothing_else_does() -> None:
    numbers = {uniform(seed, position) for seed in range(30) for position in range(30)}
    assert len(numbers) == 900
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(-(2**63), 0) == uniform(-(2**63), 0)
    values = [uniform(7, position) for position in range(2000)]
    assert sum(values) / 2000 == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_choose_a_possible_token(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.model.sampler.uniform", lambda *_: number)
    logits = torch.full((1, VOCAB_SIZE), -1e9)
    logits[0, [4, 8]] = torch.tensor([2.0, 1.0])
    wanted = 4 if number == 0.0 else 8
    assert sample(logits, [row_of(SamplingParams())]) == [wanted]
    assert sample(logits, [row_of(SamplingParams(top_k=1))]) == [4]


def test_a_very_low_temperature_is_greedy() -> None:
    logits = make_logits(20) * 1000
    params = SamplingParams(temperature=1e-9)
    assert sample(logits, [row_of(params, seed=i) for i in range(20)]) == logits.argmax(-1).tolist()


def test_log_probabilities_are_those_before_temperature_and_penalties() -> None:
    logits = make_logits(3)
    params = [SamplingParams(temperature=0.3, frequency_penalty=2, logprobs=n) for n in (0, 2, 5)]
    found = log_probabilities(logits, [1, 2, 3], params, [0, 2, 5])
    for i, (entry, count) in enumerate(zip(found, (0, 2, 5), strict=True)):
        plain = [float(value) for value in logits[i]]
        total = math.log(sum(math.exp(value) for value in plain))
        assert entry.token_id == i + 1
        assert entry.logprob == pytest.approx(plain[i + 1] - total, abs=1e-5)
        order = sorted(range(VOCAB_SIZE), key=lambda k: -plain[k])[:count]
        assert [token_id for token_id, _ in entry.top] == order
        assert [value for _, value in entry.top] == pytest.approx([plain[k] - total for k in order], abs=1e-5)


def test_ids_asked_for_stand_in_place_of_the_likeliest() -> None:
    logits = make_logits()
    params = SamplingParams(logprobs=3, logprob_token_ids=(5, 6))
    (entry,) = log_probabilities(logits, [1], [params], [3])
    assert {token_id for token_id, _ in entry.top} == {5, 6}
    assert entry.top[0][1] >= entry.top[1][1]


def test_more_alternatives_than_the_vocabulary_has_are_all_of_it() -> None:
    (entry,) = log_probabilities(make_logits()[:, :4], [1], [SamplingParams(logprobs=20)], [20])
    assert sorted(token_id for token_id, _ in entry.top) == [0, 1, 2, 3]
