"""A source of answers that computes nothing: as many are right as a test says."""

from __future__ import annotations

from itertools import pairwise

from app.measure.evaluation import Evaluation, Measurement


class FakeModel:
    """Answers as many examples right as it is told for a prompt's digest; remembers what it was asked."""

    def __init__(self) -> None:
        self.digest_to_num_right: dict[str, int] = {}
        self.asked: list[str] = []

    def __call__(self, asked: Measurement) -> Evaluation:
        assert asked.served.prompt is not None
        digest = asked.served.prompt.digest
        self.asked.append(digest)
        num_right = self.digest_to_num_right.get(digest, 4)
        if not asked.served.labels:
            answers = [target if n < num_right else "other words" for n, target in enumerate(asked.targets)]
            return Evaluation.of_texts(answers, asked.targets)
        wrong = dict(pairwise([*asked.served.labels, asked.served.labels[0]]))
        answers = [target if n < num_right else wrong[target] for n, target in enumerate(asked.targets)]
        return Evaluation.of_labels(answers, asked.served.labels, asked.targets)
