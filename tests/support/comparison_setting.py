"""A task that a tiny backbone can learn in seconds."""

from __future__ import annotations

from dataclasses import replace

from app.compare.setting import Setting
from app.measure.dataset import Dataset, Example
from app.model.layout import Template
from app.tuning.config import TuneConfig

LABELS = ("no", "yes")
EXAMPLES = tuple(Example(("zz", "qq")[i % 2] + " abc"[: i % 4] + str(i % 7), LABELS[i % 2]) for i in range(64))
CONFIG = TuneConfig(num_virtual_tokens=8, batch_size=16, max_steps=30, eval_every=10)


def toy_setting(**changes: object) -> Setting:
    """Args: changes: fields of TuneConfig."""
    data = Dataset("toy.jsonl", EXAMPLES)
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    return Setting.make(data, data, data, config, template=Template("{input}\nA: {target}"), num_shots=4)
