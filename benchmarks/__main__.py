"""`python -m benchmarks PART...`: how fast softswap is, next to what a user would run instead, and what it costs.

Random weights of SmolLM2-135M's shape, greedy, end-of-sequence ignored. Contenders take turns; figures are medians over
the rounds. The last line printed is one JSON object; `--save` keeps it. `python -m benchmarks page` renders what was
kept, and `python -m benchmarks install vllm` makes vLLM's environment. docs/benchmarks.md says what each part measures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from transformers.utils import logging as transformers_logging

from benchmarks.page import render_part, write_page
from benchmarks.part import RESULTS, Run, failed
from benchmarks.setup import PEERS, Setting, Setup

PARTS = {
    "peers": "benchmarks.parts.peers",
    "decisions": "benchmarks.parts.decisions",
    "many-tasks": "benchmarks.parts.many_tasks",
    "cold-task": "benchmarks.parts.cold_task",
    "prompt-length": "benchmarks.parts.prompt_length",
    "http": "benchmarks.parts.http_cost",
    "decode": "benchmarks.parts.decode",
    "co-serving": "benchmarks.parts.co_serving",
    "trees": "benchmarks.parts.trees",
    "tuning": "benchmarks.parts.tuning",
    "gpu": "benchmarks.gpu.measure",
}
"""Every part is a module whose `measure(setup, say)` yields `Part`s as they are done. Only those asked for are
imported: a machine with a GPU need not have what servers and peers want."""


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"peft\.|transformers\.")  # once for each adapter, nothing to do about
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.names == ["page"]:
        write_page(PARTS)
    elif options.names == ["install", "vllm"]:
        from benchmarks.peers.remote import install_vllm

        install_vllm()
    else:
        _measure(options, _setting(options), shlex.join(["python", "-m", "benchmarks", *given]))


def _measure(options: argparse.Namespace, setting: Setting, command: str) -> None:
    progress, console = Console(stderr=True), Console(quiet=options.json, width=140)
    setup, run = Setup(setting), Run(options.names, command, setting.as_json(), options.out)
    for name in options.names:
        try:
            for part in importlib.import_module(PARTS[name]).measure(
                setup, lambda line: progress.print(line, style="dim", highlight=False)
            ):
                run.add(part)
                console.print(Markdown(render_part(part.name, part.as_json())))
        except Exception as error:
            run.add(failed(name, error))
            progress.print_exception()
    print(json.dumps(run.result))
    if any(part["question"] == "failed" for part in run.result["parts"].values()):
        raise SystemExit(1)


def _setting(options: argparse.Namespace) -> Setting:
    setting = Setting.smoke() if options.smoke else Setting()
    return replace(
        setting,
        dtype=options.dtype,
        threads=options.threads,
        num_rounds=options.rounds or setting.num_rounds,
        peers=tuple(options.peers),
        other=options.other and options.other.resolve(),
        only=tuple(options.only),
        data=options.data,
        model=options.model,
        budget_s=options.budget or setting.budget_s,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises SystemExit, after saying why on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="PART", help=f"{', '.join(PARTS)}; or page; or install vllm")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--rounds", type=int, help="in which every contender runs once (default: 3)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, help="that torch computes with (default: as torch chooses; trees: 1)")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)} (default: all)"
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few requests: a rehearsal, no figures")
    parser.add_argument("--save", dest="out", action="store_const", const=RESULTS, help="keep it in benchmarks/results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep it in another folder")
    parser.add_argument("--other", type=Path, metavar="DIR", help="trees, tuning: a source tree to compare with")
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP", help="gpu: some steps; tuning: some data sets")
    parser.add_argument("--data", type=Path, metavar="DIR", help="tuning: folders with train.jsonl and test.jsonl")
    parser.add_argument("--model", help="tuning: the backbone, as softswap tune takes it")
    parser.add_argument("--budget", type=float, metavar="S", help="gpu: no step begins later; tuning: of a run (540)")
    options = parser.parse_args(arguments)
    if options.names not in (["page"], ["install", "vllm"]) and (unknown := set(options.names) - set(PARTS)):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and peers end too
    main()
