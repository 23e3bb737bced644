"""`python -m benchmarks.serving`: what serving many tuned tasks from one engine is worth, and what it costs.

Random weights of SmolLM2-135M's shape in float32, greedy, end-of-sequence ignored, every request there at t = 0.
Contenders take turns in one process, engines among themselves step by step; figures are medians over the rounds. The
last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from transformers.utils import logging as transformers_logging

from benchmarks.machine import Machine
from benchmarks.parts import NAME_TO_PART
from benchmarks.report import run_as_json, save, show_part
from benchmarks.setting import Bench, Setting


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    setting = replace(
        Setting.quick() if options.quick else Setting(),
        repetitions=options.repetitions,
        one_by_one_stride=options.one_by_one_stride,
    )
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"peft\.|transformers\.")  # said once per adapter, nothing to do about
    progress = Console(stderr=True)
    console = Console(quiet=options.json, width=140)
    machine = Machine.here()
    console.print(str(machine))
    bench = Bench(setting)
    parts = []
    for name in options.only or NAME_TO_PART:
        parts.append(NAME_TO_PART[name](bench, lambda line: progress.print(line, style="dim")))
        show_part(console, parts[-1])
    result = run_as_json("serving", machine, setting.as_json(), parts)
    if options.save:
        progress.print(f"kept as {save(result)}")
    print(json.dumps(result))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--repetitions", type=_positive, default=3, help="rounds in which every contender runs once")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few requests: a rehearsal, no figures")
    parser.add_argument("--only", action="append", choices=list(NAME_TO_PART), help="one part; may be repeated")
    parser.add_argument(
        "--one-by-one-stride",
        type=_positive,
        default=1,
        metavar="N",
        help="let PEFT one by one, the slowest contender, run every N-th request only; the report says so",
    )
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be at least 1")
    return number


if __name__ == "__main__":
    main()
