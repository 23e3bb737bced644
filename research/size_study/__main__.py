"""`python -m research.size_study`: what prompt tuning buys as the backbone grows (Lester et al. 2021, figure 1).

Backbones of several sizes are pre-trained on the same tokens, and on each the methods of `softswap compare` are tried
with the same budget. Whatever is done already is not done again, so the study can be run in pieces: every trial (size,
method, seed) has a file of its own, and an interrupted pre-training continues. `--plot` draws what is there and writes
the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from app.compare.comparison import planned, run_isolated
from app.compare.method import Method
from app.compare.setting import Setting
from app.model.backbone import Backbone
from app.model.layout import Template
from app.model.loading.checkpoint import fingerprint_files
from app.tuning.config import TuneConfig
from benchmarks.machine import describe_machine
from research.demo.recipes import RECIPES, find_recipe
from research.demo.tasks import read_splits
from research.size_study.backbones import SIZES, Size, prepare_tokens, pretrain, write_json
from research.size_study.page import read_results, write_page

DOCS = Path(__file__).parents[2] / "docs"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    if options.plot:
        write_page(read_results(options.results), options.docs)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    options.results.mkdir(parents=True, exist_ok=True)
    tokens = prepare_tokens(options.work, options.data)
    setting = _setting(options)
    for size in SIZES:
        if size.name in options.size:
            model = pretrain(size, options.work, tokens, options.num_tokens)
            for method, seed in planned([Method(name) for name in options.method], options.seed):
                _try(size, model, setting, method, seed, options)


def _try(size: Size, model: Path, setting: Setting, method: Method, seed: int, options: argparse.Namespace) -> None:
    """One trial into its file, unless that holds the same trial of the same backbone already."""
    path = options.results / f"{options.task}-{size.name}-{method}-{seed}.json"
    digest = setting.digest(fingerprint_files(model))
    if path.exists() and json.loads(path.read_text())["trial"]["setting_digest"] == digest:
        return
    load = partial(Backbone.load, str(model), dtype="float32", device="cpu")
    trial = run_isolated(load, setting, method, seed)
    pretraining = json.loads((model.parent / "pretrained.json").read_text())
    write_json(
        path,
        {
            "size": size.name,
            "task": options.task,
            "trial": asdict(trial),
            "setting": setting.as_json(),
            "pretraining": pretraining,
            "machine": describe_machine(),
        },
    )
    sys.stderr.write(f"{path.name}: {trial.metric} {trial.value:.3f} after {trial.tuning_s:.0f} s\n")


def _setting(options: argparse.Namespace) -> Setting:
    recipe = find_recipe(options.task)
    splits = read_splits(options.data / "tasks" / recipe.data)
    return Setting.make(
        splits.train,
        splits.validation,
        splits.test,
        TuneConfig(max_steps=options.max_steps, batch_size=options.batch_size),
        template=Template(recipe.template),
        labels=splits.labels(recipe),
        instructions=recipe.instructions,
        num_shots=recipe.num_shots,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m research.size_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names, methods = [size.name for size in SIZES], [method.value for method in Method]
    parser.add_argument("--work", type=Path, help="folder of token streams and backbones; is made")
    parser.add_argument("--data", type=Path, help="folder with corpora/ and tasks/")
    parser.add_argument("--task", default="subjectivity", choices=[recipe.task for recipe in RECIPES])
    parser.add_argument("--size", nargs="+", default=names, choices=names, help="(default: all)")
    parser.add_argument("--method", nargs="+", default=methods, choices=methods, help="(default: all)")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-tokens", type=int, default=8_000_000, help="tokens each backbone is pre-trained on")
    parser.add_argument("--max-steps", type=int, default=400, help="updates of a tuning run")
    parser.add_argument("--batch-size", type=int, default=16, help="examples in an update")
    parser.add_argument("--results", type=Path, default=DOCS / "size_study", help="folder of one file for each trial")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where --plot writes size_study.md and its picture")
    parser.add_argument("--plot", action="store_true", help="draw the results there are, and do nothing else")
    options = parser.parse_args(arguments)
    if not options.plot and (options.work is None or options.data is None):
        parser.error("--work and --data are needed")
    return options


if __name__ == "__main__":
    main()
