"""What was chosen to serve a model answers as the model does, or the model's own code serves it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine.config import EngineConfig
from app.engine.model_runner import ModelRunner
from app.model.attention import AttentionBatch, attend_reference, attend_sdpa
from app.model.kernels import Kernels, Replacements
from tests.support.models import tiny_backbone

CONFIG = EngineConfig(
    max_model_len=64,
    max_num_seqs=2,
    max_num_batched_tokens=32,
    block_size=8,
    num_blocks=9,
    max_waiting_requests=9,
    max_waiting_tokens=99,
)


def attend_wrong_in_decodes(
    query: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """Only where every sequence adds one token."""
    found = attend_reference(query, keys, values, batch, scale, window)
    return found * 1.1 if batch.num_decodes == len(batch.query_lens) else found


def attend_until_decodes(*arguments: Any) -> Tensor:
    if arguments[3].num_decodes == len(arguments[3].query_lens):
        raise RuntimeError("no kernel image")
    return attend_reference(*arguments)


class FaultyKernels(Kernels):
    """As it is told."""

    def __init__(
        self, attend: Callable[..., Tensor] = attend_sdpa, layers: Callable[[Any], Replacements] | None = None
    ):
        self._attend, self._layers = attend, layers

    def choose_attend(self, *_: Any) -> Any:
        return self._attend, "the fastest"

    def choose_replacements(self, model: Any, *_: Any) -> tuple[Replacements, str]:
        return self._layers(model) if self._layers else Replacements(), "the fastest"


def raising(_: Any) -> Replacements:
    raise RuntimeError("The size of tensor a (4) must match")


def wrong_layer(model: Any) -> Replacements:
    head = model.lm_head
    return Replacements({head: lambda rows: 0.9 * torch.nn.functional.linear(rows, head.weight)})


@pytest.mark.parametrize(
    "kernels",
    [FaultyKernels(attend_wrong_in_decodes), FaultyKernels(attend_until_decodes), FaultyKernels(layers=wrong_layer)],
)
def test_what_answers_differently_is_not_used(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.engine.model_runner.kernels_for", lambda _: kernels)
    with caplog.at_level(logging.WARNING):
        runner = ModelRunner(tiny_backbone(), CONFIG)
    assert runner.attend is attend_sdpa
    assert runner.computed_by["layers"] == "torch"
    assert "torch's own code computes it" in caplog.text


def test_layers_that_cannot_be_tried_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.engine.model_runner.kernels_for", lambda _: FaultyKernels(attend_reference, raising))
    with caplog.at_level(logging.INFO):
        runner = ModelRunner(tiny_backbone(), CONFIG)
    assert (runner.attend, runner.computed_by["layers"]) == (attend_reference, "torch")
    assert "layers: torch's own (RuntimeError)" in caplog.text
