"""A task that a tiny backbone can learn in seconds, and trials made up for summaries and plots."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

from app.compare.method import Method
from app.compare.setting import Setting
from app.compare.trial import Trial
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


def trial(method: Method = Method.LORA, seed: int = 0, value: float = 0.8, metric: str = "accuracy") -> Trial:
    return Trial(
        method=method, seed=seed, backbone_fingerprint="f", num_backbone_parameters=1000, setting_digest="d",
        metric=metric, value=value, validation=value, metrics={metric: value, "num_examples": 100.0},
        num_parameters=0 if method is Method.ZERO_SHOT else 50, num_stored_bytes=400, num_tries=4, chosen={},
        num_steps=10, best_step=10, tuning_s=2.0 + seed, tuning_cpu_s=4.0 + seed,
        peak_memory_bytes=10 + seed, memory_measure="m",
        latency_s=None if method is Method.LORA else 0.01,
    )  # fmt: skip


def words_of(path: Path) -> str:
    """All text in an SVG file."""
    root = ET.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return " ".join(text for element in root.iter() if (text := (element.text or "").strip()))
