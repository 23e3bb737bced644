"""Calibration: whether answers given a probability of 0.8 are right eight times in ten, and what corrects it.

Guo et al. 2017, "On Calibration of Modern Neural Networks": the expected calibration error of section 2, over NUM_BINS
bins of equal width, and the temperature of section 4.2, one number that changes every probability and no answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

NUM_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0
PRIOR_DEVIATION = 0.5
"""Of the prior on a temperature's logarithm, around 0: a factor of 1.6 either way until the examples say more. Without
it, ten right answers out of ten would drive the temperature to 0 and the probability of every answer to 1."""
LOWEST_SCORE = -1e4
"""Takes the place of the logarithm of 0."""

Scores: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """The examples whose likeliest label has a probability in (low, high].

    Attributes:
        confidence: mean probability of the likeliest label.
        accuracy: share of them for which that label is right.
    """

    low: float
    high: float
    num_examples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How reliable the probabilities softmax(scores / temperature) are.

    Attributes:
        bins: only those that hold examples, ascending.
        nll: mean negative log-probability of the right label, natural logarithm.
    """

    temperature: float
    bins: tuple[ConfidenceBin, ...]
    nll: float

    @classmethod
    def measure(cls, scores: npt.ArrayLike, targets: npt.ArrayLike, temperature: float = 1.0) -> Calibration:
        """Args: as `fit_temperature`."""
        values, right = _prepare(scores, targets)
        log_probabilities = log_softmax(values / temperature, axis=1)
        confidences = np.exp(log_probabilities.max(axis=1))
        hits = log_probabilities.argmax(axis=1) == right
        return cls(temperature, _fill_bins(confidences, hits), _mean_nll(log_probabilities, right))

    @property
    def error(self) -> float:
        """The expected calibration error: mean distance between confidence and accuracy over the examples."""
        total = sum(each.num_examples for each in self.bins)
        return sum(each.num_examples * abs(each.confidence - each.accuracy) for each in self.bins) / total


def fit_temperature(scores: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """The likeliest temperature, if softmax(scores / temperature) drew the right labels, under the prior.

    Args:
        scores: (num_examples, num_labels) log P(label | prompt, text), natural logarithm; an array, a CPU tensor or
            lists.
        targets: (num_examples,) index of the right label.

    Returns: Between MIN_TEMPERATURE and MAX_TEMPERATURE. Above 1, the scores were too confident; below 1, not enough.
    """
    values, right = _prepare(scores, targets)

    def cost(log_temperature: float) -> float:
        nll = _mean_nll(log_softmax(values / math.exp(log_temperature), axis=1), right)
        return nll + (log_temperature / PRIOR_DEVIATION) ** 2 / (2 * len(right))

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    return math.exp(minimize_scalar(cost, bounds=bounds, method="bounded").x)


def _prepare(scores: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Scores, npt.NDArray[np.int64]]:
    return np.maximum(np.asarray(scores, dtype=np.float64), LOWEST_SCORE), np.asarray(targets, dtype=np.int64)


def _mean_nll(log_probabilities: Scores, right: npt.NDArray[np.int64]) -> float:
    return float(-log_probabilities[np.arange(len(right)), right].mean())


def _fill_bins(confidences: Scores, hits: npt.NDArray[np.bool_]) -> tuple[ConfidenceBin, ...]:
    places = np.clip(np.ceil(confidences * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return tuple(
        ConfidenceBin(
            low=place / NUM_BINS,
            high=(place + 1) / NUM_BINS,
            num_examples=int((places == place).sum()),
            confidence=float(confidences[places == place].mean()),
            accuracy=float(hits[places == place].mean()),
        )
        for place in np.unique(places).tolist()
    )
