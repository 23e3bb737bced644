"""Metrics: how good answers are, as numbers between 0 and 1."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

ENTITY_SEPARATOR = ";"
NO_ENTITY = "none"


def accuracy(predictions: Sequence[str], targets: Sequence[str]) -> float:
    return float(accuracy_score(targets, predictions))


def macro_f1(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Unweighted mean over the labels that occur in either."""
    return float(f1_score(targets, predictions, average="macro", zero_division=0.0))


def confusion(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Counts: rows are targets, columns predictions, both in the order of `labels`."""
    return tuple(map(tuple, confusion_matrix(targets, predictions, labels=list(labels)).tolist()))


@dataclass(frozen=True, slots=True)
class LabelScore:
    """How well one label is answered.

    Attributes:
        precision: share of the answers with this label that are right; 0 if there are none.
        recall: share of the examples of this label that are answered with it; 0 if there are none.
        num_examples: whose target it is.
    """

    label: str
    precision: float
    recall: float
    f1: float
    num_examples: int


def per_label(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> tuple[LabelScore, ...]:
    """In the order of `labels`."""
    columns = precision_recall_fscore_support(targets, predictions, labels=list(labels), zero_division=0.0)
    rows = zip(labels, *(column.tolist() for column in columns), strict=True)
    return tuple(LabelScore(label, precision, recall, f1, int(count)) for label, precision, recall, f1, count in rows)


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Share of answers that equal the target after blanks are trimmed at both ends."""
    hits = sum(p.strip() == t.strip() for p, t in zip(predictions, targets, strict=True))
    return hits / len(targets)


def token_f1(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Mean over examples of the F1 between bags of lower-case words (SQuAD, Rajpurkar et al. 2016, section 6.1)."""
    return _mean_f1(predictions, targets, lambda found, wanted: (Counter(found) & Counter(wanted)).total())


def rouge_l(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Mean over examples of the F1 of the longest common subsequence of lower-case words (Lin 2004, section 3.1).

    Equal to rouge-score 0.1.2 without stemming on English; that package, last released in 2022, drops every letter
    that is not ASCII, and brings nltk.
    """
    return _mean_f1(predictions, targets, _longest_common_subsequence)


NAME_TO_TEXT_METRIC = {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge_l}
"""Means over examples."""


def entity_f1(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Micro F1 over answers such as "type = entity; type = entity". Type and words must both match; "none" is none."""
    found = [entities_of(text) for text in predictions]
    wanted = [entities_of(text) for text in targets]
    num_hits = sum((f & w).total() for f, w in zip(found, wanted, strict=True))
    return _f1(num_hits, sum(f.total() for f in found), sum(w.total() for w in wanted))


NAME_TO_METRIC = {"accuracy": accuracy, "macro_f1": macro_f1, "entity_f1": entity_f1} | NAME_TO_TEXT_METRIC
"""Of answers and what they should be."""


def entities_of(text: str) -> Counter[tuple[str, str]]:
    """The (type, entity) pairs of an answer; pieces without "=" and the word "none" are no entities."""
    pairs = (piece.partition("=") for piece in text.split(ENTITY_SEPARATOR))
    return Counter((kind.strip(), words.strip()) for kind, equals, words in pairs if equals and words.strip())


def names_of(labels: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The metrics by which versions of a task can be compared, the main one first; higher is better for all of them."""
    if labels:
        return ("accuracy", "macro_f1")
    entity = ("entity_f1",) if is_entity_list(targets) else ()
    return (*entity, "rouge_l", "token_f1", "exact_match")


def is_entity_list(targets: Sequence[str]) -> bool:
    """Whether the targets are written as `entity_f1` reads them."""
    return any("=" in target for target in targets) and all(
        target.strip() == NO_ENTITY or all("=" in piece for piece in target.split(ENTITY_SEPARATOR))
        for target in targets
    )


def wilson_interval(share: float, num_examples: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927); `z` = 1.96 gives 95 %."""
    denominator = 1 + z * z / num_examples
    middle = (share + z * z / (2 * num_examples)) / denominator
    reach = z * math.sqrt(share * (1 - share) / num_examples + z * z / (4 * num_examples**2)) / denominator
    return max(0.0, middle - reach), min(1.0, middle + reach)


def shares_of(metric: str, prediction: str, target: str) -> tuple[float, float]:
    """What one example adds to a metric of texts: summed over all, the first divided by the second is the metric.

    Args: metric: "exact_match", "token_f1", "rouge_l" or "entity_f1".
    """
    if metric == "entity_f1":
        found, wanted = entities_of(prediction), entities_of(target)
        return 2.0 * (found & wanted).total(), float(found.total() + wanted.total())
    return NAME_TO_TEXT_METRIC[metric]([prediction], [target]), 1.0


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _f1(num_hits: int, num_found: int, num_wanted: int) -> float:
    return 2 * num_hits / (num_found + num_wanted) if num_found + num_wanted else 1.0


def _mean_f1(
    predictions: Sequence[str], targets: Sequence[str], count_shared: Callable[[list[str], list[str]], int]
) -> float:
    """Args: count_shared: hits among the words of an answer and of its target."""
    pairs = [(words_of(p), words_of(t)) for p, t in zip(predictions, targets, strict=True)]
    return sum(_f1(count_shared(found, wanted), len(found), len(wanted)) for found, wanted in pairs) / len(pairs)


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for i, other in enumerate(second, 1):
            above = lengths[i]
            lengths[i] = diagonal + 1 if word == other else max(above, lengths[i - 1])
            diagonal = above
    return lengths[-1]
