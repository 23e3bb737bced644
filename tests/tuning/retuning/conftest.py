"""Rows and a version to move."""

from __future__ import annotations

from collections.abc import Sequence

from app.measure.dataset import Example
from app.model.layout import Template
from app.registry.formats.manifest import Manifest
from app.registry.publication import Publication
from app.registry.version import Version
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt

LABELS = ("no", "yes")
ROWS = tuple(Example(f"{'good' if n % 2 else 'bad'} {n}", LABELS[n % 2]) for n in range(100))


def make_version(template: Template, labels: Sequence[str] = LABELS) -> Version:
    """Of another backbone than `tiny_backbone()`."""
    old = tiny_backbone("qwen2")
    files = Publication(random_prompt(old), template=template, labels=labels).encode("mood", 1, old)
    return Version.from_manifest(Manifest.decode(files["task.json"]))
