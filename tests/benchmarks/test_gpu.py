"""The program for a GPU, rehearsed whole on the CPU: what it prints and keeps, and what it refuses to time."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import measure
from benchmarks.models import TINY_LLAMA, TINY_QWEN3, Shape, num_flops_per_token, num_weight_bytes
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.setup import Setting, Setup
from benchmarks.workloads import Outcome, Workload

pytestmark = pytest.mark.slow

SMOKE = Setting.smoke()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[str]:
    """What a whole rehearsal prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main(["gpu", "--smoke", "--out", str(folder)])
    return output.getvalue().splitlines()


@pytest.fixture(scope="module")
def result(lines: list[str]) -> dict:
    return json.loads(lines[-1])


def test_every_step_comes_to_its_end(result: dict) -> None:
    wanted = ["decode", "prompts", "batching"]
    names = [f"{name}, tiny-qwen3" for name in (*wanted, "tuning")] + [f"{name}, tiny-llama" for name in wanted]
    assert list(result["parts"]) == [f"gpu: {name}" for name in ("answers", *names)]
    assert all(part["question"] != "failed" for part in result["parts"].values())


def test_every_way_to_compute_is_timed_and_above_the_floor(result: dict) -> None:
    for name in ("tiny-qwen3", "tiny-llama"):
        figures = result["parts"][f"gpu: decode, {name}"]["figures"]
        assert list(figures) == [*(f"batch {size}" for size in SMOKE.decode_batches), "reading texts"]
        for row in figures.values():
            assert set(row) == {"floor, ms", *(f"{way}, ms" for way in measure.WAYS)}
            assert all(value > row["floor, ms"] for column, value in row.items() if column != "floor, ms")


def test_transformers_generates_as_many_tokens_in_the_same_run(result: dict) -> None:
    contenders = result["parts"]["gpu: batching, tiny-llama"]["contenders"]
    assert [each["num_requests"] for each in contenders.values()] == [SMOKE.dimensions.num_requests] * 2
    num_virtual = SMOKE.dimensions.num_requests * SMOKE.dimensions.num_virtual_tokens
    assert contenders["softswap"]["num_cached_tokens"] == num_virtual


def test_what_was_kept_is_what_was_printed(folder: Path, result: dict) -> None:
    (path,) = folder.glob("gpu-*.json")
    assert json.loads(path.read_text())["parts"] == result["parts"]


def test_no_step_begins_when_the_time_is_over_and_the_report_says_so() -> None:
    parts = list(measure.measure(Setup(replace(SMOKE, budget_s=0.0, only=("answers", "tuning"))), print))
    assert [part.name for part in parts] == ["gpu: answers", "gpu: tuning, tiny-qwen3"]
    assert all("no time: 0 s were left" in reason for part in parts for reason in part.cannot.values())


def test_a_step_that_fails_is_named_and_the_others_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measure, "_check_answers", fail)
    first, second = measure.measure(Setup(replace(SMOKE, only=("answers", "tuning"))), print)
    assert first.cannot == {"gpu: answers": "RuntimeError: out of memory"}
    assert second.name == "gpu: tuning, tiny-qwen3"
    assert second.figures


def test_an_engine_that_answers_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SoftswapPeer.run

    def wrong(peer: SoftswapPeer, workload: Workload) -> Outcome:
        outcome = whole(peer, workload)
        first, *others = outcome.tokens
        return replace(outcome, tokens=((*first[:-1], (first[-1] + 1) % 512), *others))

    monkeypatch.setattr(SoftswapPeer, "run", wrong)
    monkeypatch.setattr(measure, "WAYS", {"plain": measure.WAYS["plain"]})
    found = measure.measure(Setup(SMOKE), print)
    first = next(found)
    assert "float32, plain" in first.cannot["gpu: answers"]
    with pytest.raises(SystemExit, match="something else"):
        next(found)


@pytest.mark.parametrize("shape", [TINY_LLAMA, TINY_QWEN3])
def test_bytes_and_operations_are_those_of_the_shape(shape: Shape) -> None:
    backbone = shape.build_backbone(torch.device("cpu"), torch.float32)
    table = 512 * 128
    attention = 128 * 128 * 2 + 128 * 64 * 2
    layers = 2 * (attention + 3 * 128 * 256)
    norms = sum(p.numel() for p in backbone.model.parameters() if p.ndim == 1)
    assert num_weight_bytes(backbone) == 4 * (layers + norms + table)
    assert num_flops_per_token(backbone) == 2 * (layers + norms)


def test_without_a_device_it_says_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--smoke"):
        next(measure.measure(Setup(Setting()), print))
