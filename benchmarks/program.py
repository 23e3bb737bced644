"""`python -m benchmarks NAME...`: how fast softswap is, beside what a user would run instead, and what it costs.

Random weights of SmolLM2-135M's shape, greedy, end-of-sequence ignored. Contenders take turns, engines among
themselves step by step; figures are medians over the rounds. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from benchmarks.machine import Machine
from benchmarks.parts.catalogue import NAME_TO_PART
from benchmarks.report import run_as_json, save, show_part
from benchmarks.setting import PEERS, Bench, Setting


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    options = _parse(given)
    setting = Setting.smoke() if options.smoke else Setting()
    repetitions = options.repetitions or setting.repetitions
    setting = replace(setting, repetitions=repetitions, dtype=options.dtype, peers=tuple(options.peers))
    setting = replace(setting, threads=options.threads, other=options.other and options.other.resolve())
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"peft\.|transformers\.")  # said once per adapter, nothing to do about
    progress = Console(stderr=True)
    console = Console(quiet=options.json, width=140)
    machine = Machine.here()
    console.print(str(machine))
    bench = Bench(setting)
    parts = []
    for name in options.names:
        parts.append(NAME_TO_PART[name](bench, lambda line: progress.print(line, style="dim")))
        show_part(console, parts[-1])
    command = shlex.join(["python", "-m", "benchmarks", *given])
    result = run_as_json(options.names, command, machine, setting.as_json(), parts)
    if options.save:
        progress.print(f"kept as {save(result)}")
    print(json.dumps(result))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*NAME_TO_PART], help=", ".join(NAME_TO_PART))
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument(
        "--rounds",
        "--repetitions",
        dest="repetitions",
        type=_positive,
        help="rounds in which every contender runs once (default: 3)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER", help=f"run beside these: {', '.join(PEERS)}"
    )
    parser.add_argument("--threads", type=_positive, help="torch's threads (default: as torch chooses; trees: 1)")
    parser.add_argument("--other", type=Path, help="trees: the source tree to compare this one with")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few requests: a rehearsal, no figures")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be at least 1")
    return number
