"""A prompt that is learned through a network: the network learns too, and what is kept are rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from app.tuning.config import TuneConfig
from benchmarks import reparameterization
from benchmarks.reparameterization import WAYS, Residual, ThroughNetwork, learn
from tests.support.models import tiny_backbone


@pytest.mark.parametrize("kind", [ThroughNetwork, Residual])
def test_an_update_moves_the_network_and_leaves_no_gradient(kind: type[ThroughNetwork]) -> None:
    member = kind(0, TuneConfig(learning_rate=0.1), torch.randn(4, 8), torch.tensor(0.5))
    before = [parameter.detach().clone() for parameter in member.network.parameters()]
    member.rows.square().sum().backward()
    member.update(10, 20)
    assert all(not torch.equal(old, new) for old, new in zip(before, member.network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in member.network.parameters())


def test_every_way_learns_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "subjectivity"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"input": f"{split} {i}", "target": ("objective", "subjective")[i % 2]} for i in range(8)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(reparameterization, "WAYS", {way: (kind, (0.01,)) for way, (kind, _) in WAYS.items()})
    for way in WAYS:
        found = learn(tiny_backbone(), tmp_path, "subjectivity", way, max_steps=4)
        assert found["learning_rate"] == 0.01
        assert 0 <= found["test_interval"][0] <= found["test"] <= found["test_interval"][1] <= 1
