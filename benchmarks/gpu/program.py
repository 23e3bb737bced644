"""`python -m benchmarks gpu`: one run on one CUDA device, ten minutes at most, from a cold start.

First that the device answers as the reference does, then how fast: random weights of Qwen3-0.6B's and Llama-3-8B's
shape in bfloat16. What is measured is kept in a file as soon as it is; a part that fails, or for which no time is left,
says so and the others go on. The table of all ratios is printed last, then one JSON object. `--smoke` is the whole run
on the CPU, with tiny models: a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from app.model.backbone import Backbone
from app.task_prompt import PromptKind
from benchmarks.gpu.correctness import Incorrect, check_correctness
from benchmarks.gpu.device import Device
from benchmarks.gpu.loads import measure_cold_prompts, measure_loads, measure_many_tasks
from benchmarks.gpu.models import LLAMA_3_8B, QWEN3_0_6B, TINY_LLAMA, TINY_QWEN3, Spec
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.steps import measure_decode, measure_prefill
from benchmarks.machine import Machine
from benchmarks.report import RESULTS, Part, Ratio, Say, run_as_json, show_part

BUDGET_S = 540.0
RESERVE_S = 45.0
"""No part is begun with less than this left of the budget."""
SIDE_BY_SIDE_BOUND = 0.35

PartOf = tuple[str, Callable[[], Part]]


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    options = _parse(given)
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; `--smoke` rehearses the run on the CPU")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    progress, console = Console(stderr=True), Console(quiet=options.json, width=140)
    run = Run(given, lambda line: progress.print(line, style="dim", highlight=False))
    for part in run.parts():
        show_part(console, part)
    console.print(_ratio_table(run.done))
    for name, reason in run.name_to_failure.items():
        console.print(f"  [red]{name}[/red]: {reason}")
    print(json.dumps(run.result))


class Run:
    """All parts in turn, each kept when it is done.

    Attributes:
        done: parts so far.
        name_to_failure: parts that ended otherwise, and why.
    """

    def __init__(self, given: Sequence[str], say: Say) -> None:
        self._began_s = time.perf_counter()
        options = _parse(given)
        self._is_smoke: bool = options.smoke
        self._budget_s: float = options.budget
        self._say = say
        self._sizes = Sizes.smoke() if options.smoke else Sizes()
        self._device = (
            Device.rehearsal() if options.smoke else Device(torch.device("cuda", torch.cuda.current_device()))
        )
        self._moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._folder: Path = options.out
        self._command = shlex.join(["python", "-m", "benchmarks", "gpu", *given])
        self._names: list[str] | None = options.only
        self.done: list[Part] = []
        self.name_to_failure: dict[str, str] = {}

    @property
    def result(self) -> dict[str, Any]:
        setting = {
            "shape": "+".join(spec.name for spec in self._specs),
            "dtype": str(self._device.dtype).removeprefix("torch."),
            "device": self._device.name,
            "sizes": asdict(self._sizes),
        }
        result = run_as_json(["gpu"], self._command, Machine.here(), setting, self.done)
        return result | {"failed": self.name_to_failure, "took_s": round(time.perf_counter() - self._began_s, 1)}

    def parts(self) -> Iterator[Part]:
        """Raises SystemExit: the device answers something else than the reference."""
        yield from self._attempt("correctness", lambda: check_correctness(self._device, self._say))
        yield from self._attempt("device", self._measure_device)
        for spec in self._specs:
            yield from self._parts_of(spec)

    @property
    def _specs(self) -> list[Spec]:
        return [TINY_QWEN3, TINY_LLAMA] if self._is_smoke else [QWEN3_0_6B, LLAMA_3_8B]

    def _parts_of(self, spec: Spec) -> Iterator[Part]:
        device, sizes, say = self._device, self._sizes, self._say
        is_large = spec is self._specs[-1]
        say(f"making {spec.name}")
        backbone = spec.build(device)
        parts: list[PartOf] = [
            ("decode", lambda: measure_decode(backbone, device, sizes, say, is_bound=is_large)),
            ("prefill", lambda: measure_prefill(backbone, device, sizes, say)),
            ("cold", lambda: measure_cold_prompts(backbone, device, sizes, say)),
            ("loads", lambda: measure_loads(backbone, device, sizes, say)),
        ]
        if not is_large:  # ten thousand prompts of the large shape are 8 GB, and ten seconds of random numbers
            parts.append(("tasks", lambda: measure_many_tasks(backbone, device, sizes, say)))
            parts.append(("tuning", lambda: _measure_tuning(backbone, sizes, say)))
        for name, measure in parts:
            yield from self._attempt(f"{name}, {spec.name}", measure)
            device.forget()

    def _attempt(self, name: str, measure: Callable[[], Part]) -> Iterator[Part]:
        if self._names and name.partition(",")[0] not in self._names:
            return
        left_s = self._budget_s - (time.perf_counter() - self._began_s)
        if left_s < RESERVE_S and not self._is_smoke:
            self.name_to_failure[name] = f"no time: {left_s:.0f} s were left"
            return
        try:
            part = measure()
        except Incorrect as error:
            self.name_to_failure[name] = str(error)
            self._keep()
            raise SystemExit(f"the device answers something else than the reference: {error}") from error
        except Exception as error:
            self.name_to_failure[name] = f"{type(error).__name__}: {str(error)[:300]}"
            self._say(traceback.format_exc())
            self._keep()
            return
        self.done.append(part)
        self._keep()
        yield part

    def _keep(self) -> None:
        """All that is known so far, in one file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"gpu-{self._moment}.json"
        path.write_text(json.dumps(self.result, indent=2) + "\n")

    def _measure_device(self) -> Part:
        return Part(
            name="device",
            question="what can the device do at best?",
            setting={"name": self._device.name, "dtype": str(self._device.dtype).removeprefix("torch.")},
            name_to_figures={
                "measured": {
                    "bandwidth, GB/s": self._device.bytes_per_s / 1e9,
                    "products, TFLOP/s": self._device.flops_per_s / 1e12,
                }
            },
        )


def _measure_tuning(backbone: Backbone, sizes: Sizes, say: Say) -> Part:
    # the tuner wants pydantic, and the rest of this program does not
    from benchmarks.side_by_side import NUM_PROMPTS, measure_side_by_side

    found = measure_side_by_side(
        backbone, say, kinds=[PromptKind.EMBEDDINGS], batch_sizes=[4], micro_batch_size=32, num_rounds=sizes.num_rounds
    )
    (pair,) = found.pairs
    return Part(
        name=f"tuning, {backbone.name}",
        question=found.question,
        setting=found.setting,
        name_to_figures={"an update of all": pair.medians_ms},
        ratios=(Ratio(f"{NUM_PROMPTS} prompts together / separately", pair.ratio, at_most=SIDE_BY_SIDE_BOUND),),
    )


def _ratio_table(parts: Sequence[Part]) -> Table:
    table = Table("part", "ratio", "value", "target", "")
    for part in parts:
        for ratio in part.ratios:
            word = "" if not ratio.target else "reached" if ratio.is_reached else "missed"
            table.add_row(part.name, ratio.name, f"{ratio.value:.2f}", ratio.target, word)
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU: a rehearsal, no figures")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds after which no part is begun any more")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["correctness", "device", "decode", "prefill", "cold", "loads", "tasks", "tuning"],
        help="these parts (default: all)",
    )
    return parser.parse_args(arguments)
