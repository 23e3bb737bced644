"""The program for a GPU, rehearsed whole on the CPU: what it prints and keeps, and what it refuses to time."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.engine.output.delta import Delta
from benchmarks.__main__ import main
from benchmarks.gpu import correctness, program
from benchmarks.gpu.device import Device
from benchmarks.gpu.models import TINY_LLAMA, TINY_QWEN3, num_flops_per_token, num_weight_bytes
from benchmarks.gpu.sizes import Sizes

pytestmark = pytest.mark.slow

SIZES = Sizes.smoke()


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


def test_every_part_comes_to_its_end(result: dict) -> None:
    assert result["failed"] == {}
    wanted = ["decode", "prefill", "cold prompts", "loads"]
    names = [f"{name}, tiny-qwen3" for name in (*wanted, "many tasks", "tuning")]
    names += [f"{name}, tiny-llama" for name in wanted]
    assert list(result["parts"]) == ["correctness", "device", *names]


def test_every_way_to_compute_is_timed_beside_the_floor(result: dict) -> None:
    for name in ("tiny-qwen3", "tiny-llama"):
        figures = result["parts"][f"decode, {name}"]["figures"]
        assert list(figures) == [f"batch {size}" for size in SIZES.decode_batches]
        for row in figures.values():
            assert set(row) == {"floor, ms", *(f"{way}, ms" for way in correctness.WAYS)}
            assert all(value > row["floor, ms"] for column, value in row.items() if column != "floor, ms")


def test_transformers_generates_as_many_tokens_in_the_same_run(result: dict) -> None:
    part = result["parts"]["loads, tiny-llama"]
    assert part["cannot"] == {}
    assert part["contenders"]["transformers, continuous batching"]["num_requests"] == SIZES.dimensions.num_requests
    cached = {name: contender["num_cached_tokens"] for name, contender in part["contenders"].items()}
    assert cached["soft prompts"] == SIZES.dimensions.num_requests * SIZES.dimensions.num_virtual_tokens
    assert cached["no prompts"] == cached["prompts computed for every request"] == 0


def test_the_table_of_all_ratios_stands_above_the_last_line(lines: list[str], result: dict) -> None:
    table = lines[lines.index(next(line for line in reversed(lines[:-1]) if "ratio" in line)) :]
    ratios = [ratio for part in result["parts"].values() for ratio in part["ratios"]]
    assert len(ratios) == 2 * 2 + 2 + 2 + 2 * 2 + 1 + 1
    assert all(any(ratio in line for line in table) for ratio in ratios)


def test_what_was_kept_is_what_was_printed(folder: Path, result: dict) -> None:
    (path,) = folder.glob("gpu-*.json")
    assert json.loads(path.read_text())["parts"] == result["parts"]


def test_no_part_is_begun_when_the_time_is_over_and_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "RESERVE_S", float("inf"))
    run = program.Run(["--smoke", "--out", str(tmp_path)], lambda _: None)
    run._is_smoke = False
    monkeypatch.setattr(program.Run, "_specs", property(lambda _: [TINY_LLAMA]))
    assert list(run.parts()) == []
    assert set(run.name_to_failure) >= {"correctness", "device", "decode, tiny-llama"}
    assert all(reason.startswith("no time") for reason in run.name_to_failure.values())


def test_a_part_that_fails_is_named_and_the_others_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(program, "check_correctness", fail)
    run = program.Run(["--smoke", "--only", "correctness", "device", "--out", str(tmp_path)], print)
    assert [part.name for part in run.parts()] == ["device"]
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    assert kept["failed"] == {"correctness": "RuntimeError: out of memory"}
    assert list(kept["parts"]) == ["device"]


def test_an_engine_that_answers_something_else_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = correctness._run

    def wrong(engine: object, cases: object) -> list[list[Delta]]:
        first, *others = whole(engine, cases)  # type: ignore[arg-type]
        assert first[2].logprobs is not None
        changed = replace(first[2].logprobs[0], logprob=first[2].logprobs[0].logprob - 0.01)
        return [[*first[:2], replace(first[2], logprobs=(changed,)), *first[3:]], *others]

    monkeypatch.setattr(correctness, "_run", wrong)
    monkeypatch.setattr(correctness, "WAYS", {"plain": correctness.WAYS["plain"]})
    run = program.Run(["--smoke", "--out", str(tmp_path)], lambda _: None)
    with pytest.raises(SystemExit, match="something else"):
        list(run.parts())
    assert run.done == []
    assert "plain, a mixed batch" in run.name_to_failure["correctness"]


@pytest.mark.parametrize("spec", [TINY_LLAMA, TINY_QWEN3])
def test_bytes_and_operations_are_those_of_the_shape(spec: object) -> None:
    backbone = spec.build(Device.rehearsal())  # type: ignore[attr-defined]
    table = 512 * 128
    attention = 128 * 128 * 2 + 128 * 64 * 2
    layers = 2 * (attention + 3 * 128 * 256)
    norms = sum(p.numel() for p in backbone.model.parameters() if p.ndim == 1)
    assert num_weight_bytes(backbone) == 4 * (layers + norms + table)
    assert num_flops_per_token(backbone) == 2 * (layers + norms)


def test_without_a_device_it_says_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--smoke"):
        main(["gpu"])
