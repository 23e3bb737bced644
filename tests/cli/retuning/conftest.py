"""Two tiny checkpoints, and a registry with tasks for the first of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.measure.dataset import Example, pack_examples
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.formats.binding import bind_text
from app.registry.kept.examples import TunedOn
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from tests.support.models import tiny_backbone
from tests.support.server import soft_prompt

LABELS = ("no", "yes")
EXAMPLES = [Example(f"{'good' if n % 2 else 'bad'} {n}", LABELS[n % 2]) for n in range(80)]


@dataclass(frozen=True)
class Place:
    """Attributes: old, new: folders of the two models."""

    folder: Path
    old: Path
    new: Path

    def registry(self, backbone: Backbone | None) -> Registry:
        return Registry(FileStore(self.folder / "prompts"), backbone)

    def write(self, name: str, *, with_targets: bool = True) -> Path:
        """A file of examples, or of inputs alone."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = ({"input": each.input} | ({"target": each.target} if with_targets else {}) for each in EXAMPLES)
        path.write_text("\n".join(map(json.dumps, rows)))
        return path


def save(folder: Path, architecture: str) -> Path:
    backbone = tiny_backbone(architecture)
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def new_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "other", "qwen2")


@pytest.fixture(scope="session")
def new_saved(new_checkpoint: Path) -> Backbone:
    return Backbone.load(new_checkpoint)


@pytest.fixture
def place(local: Path, checkpoint: Path, new_checkpoint: Path, saved: Backbone) -> Place:
    """On the first model: mood and tone with labels, words that writes, told, a written prompt, kept with examples."""
    made = Place(local, checkpoint, new_checkpoint)
    registry = made.registry(saved)
    labeled = {"template": Template("{input}\nLiked: {target}"), "labels": LABELS, "description": "Is it liked?"}
    registry.publish("mood", Publication(soft_prompt(saved, seed=1), **labeled))
    registry.publish("tone", Publication(soft_prompt(saved, seed=2), **labeled))
    registry.publish("words", Publication(soft_prompt(saved, seed=3), sampling={"max_tokens": 4, "stop": ["\n"]}))
    registry.publish("told", Publication(bind_text("Say yes or no.", saved), **labeled))
    kept = TunedOn(pack_examples(EXAMPLES[:60]), pack_examples(EXAMPLES[60:]))
    registry.publish("kept", Publication(soft_prompt(saved, seed=4), examples=kept, **labeled))
    return made
