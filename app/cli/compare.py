"""`softswap compare`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import options
from app.cli.backbones.pull import obtain
from app.cli.places.paths import require_new_file
from app.cli.views.data_view import show_data
from app.compare.method import Method
from app.errors import InvalidInput
from app.measure.example_file import read_dataset
from app.measure.reading.labels import settle
from app.measure.reading.look import DataLook
from app.settings import Settings
from app.tuning.config import TuneConfig

if TYPE_CHECKING:
    from app.compare.comparison import ComparisonReport
    from app.compare.trial import Summary, Trial

WRITTEN, BUDGET = "Written prompts", "Budget, the same for every method that is tuned"


@options.takes_settings("model", "device")
def compare(
    *,
    data: options.ExampleFile,
    validation: options.Validation = None,
    test: Annotated[
        Path | None,
        options.existing_file("Examples to measure on last. (default: another tenth of the data)", options.DATA),
    ] = None,
    input_field: options.InputField = None,
    target_field: options.TargetField = None,
    template: options.TemplateText = None,
    labels: options.Labels = None,
    methods: Annotated[
        str,
        typer.Option(help="Any of zero_shot, few_shot, prompt_tuning, prefix_tuning, lora, full, separated by commas. "
                     "(default: all)", show_default=False),
    ] = "",
    seeds: Annotated[str, typer.Option(help="Separated by commas; two or more give an interval over them.")] = "0,1,2",
    instruction: Annotated[
        list[str] | None,
        typer.Option(help="A prompt to try; may be repeated. (default: some made from the labels)",
                     rich_help_panel=WRITTEN),
    ] = None,
    num_shots: Annotated[
        int,
        typer.Option("--shots", help="Examples in a few-shot prompt, as many as fit.", min=1, rich_help_panel=WRITTEN),
    ] = 8,
    max_steps: Annotated[int, typer.Option(help="Updates of a run.", min=1, rich_help_panel=BUDGET)] = 400,
    batch_size: Annotated[int, typer.Option(help="Examples in an update.", min=1, rich_help_panel=BUDGET)] = 16,
    num_virtual_tokens: Annotated[
        int, typer.Option("--virtual-tokens", help="Rows of a tuned prompt or prefix.", min=1, rich_help_panel=BUDGET)
    ] = 20,
    lora_rank: Annotated[int, typer.Option(help="Rank of LoRA's updates.", min=1, rich_help_panel=BUDGET)] = 8,
    plot: Annotated[
        Path | None, typer.Option(help="Draw score against trained parameters into this SVG file.", dir_okay=False)
    ] = None,
    as_json: options.AsJson = False,
    settings: Settings,
) -> None:  # fmt: skip
    r"""Compare written prompts, prompt tuning, prefix tuning, LoRA and full fine-tuning on your examples.

    All run on one backbone with one split, one objective and one evaluation; only what is trained differs. Each tuned
    method chooses its learning rate and its best state on validation: prompts as a population of twelve (six for a
    task that writes text) that is halved three times, which costs about five runs; LoRA and full fine-tuning as four
    runs with four learning rates. Test is measured once for each seed. Nothing is published and the backbone stays as
    it is. LoRA and full fine-tuning are for comparison: softswap does not serve them.
    Needs: pip install 'softswap\[compare]'.

        softswap compare reviews.jsonl --test unseen.jsonl --plot reviews.svg
    """
    if settings.quantize != "none":
        raise InvalidInput("SOFTSWAP_QUANTIZE must be none here: some methods train the weights", param="quantize")
    chosen_methods, chosen_seeds = _parse_methods(methods), _parse_seeds(seeds)
    form = options.parse_template(template)
    config = TuneConfig(num_virtual_tokens=num_virtual_tokens, max_steps=max_steps, batch_size=batch_size)
    if plot is not None:
        require_new_file(plot, param="plot")
    read = partial(read_dataset, input_field=input_field, target_field=target_field)
    train, held_out, unseen = read(data), *(None if path is None else read(path) for path in (validation, test))
    found = settle(train, held_out, options.parse_labels(labels))
    if not as_json:
        show_data(DataLook.of(found), as_json=False)

    settings = obtain(settings, may_fall_back=False)
    from app.compare.comparison import compare as compare_methods
    from app.compare.comparison import require_packages
    from app.compare.setting import Setting
    from app.model.backbone import Backbone

    if plot is not None:
        require_packages(["matplotlib"])
    setting = Setting.make(
        found.train, found.validation, unseen, config, template=form, labels=found.labels,
        instructions=tuple(instruction or ()), num_shots=num_shots, lora_rank=lora_rank,
    )  # fmt: skip
    load = partial(
        Backbone.load, str(settings.model), revision=settings.revision, dtype=settings.dtype, device=settings.device,
        cache=settings.cache_folder,
    )  # fmt: skip
    compared = compare_methods(load, setting, chosen_methods, chosen_seeds, _show)
    if plot is not None:
        from app.compare.plot import plot_methods

        plot_methods(compared.summaries, plot, f"{data.name}: {len(compared.setting.test)} test examples")
    _report(compared, as_json=as_json)


def _parse_methods(text: str) -> list[Method]:
    try:
        return [Method(part.strip()) for part in text.split(",")] if text else list(Method)
    except ValueError:
        raise InvalidInput(f"--methods must be of {', '.join(Method)}", param="methods") from None


def _parse_seeds(text: str) -> list[int]:
    try:
        seeds = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        seeds = [-1]
    if not all(0 <= seed < 2**31 for seed in seeds):
        raise InvalidInput("--seeds must be whole numbers from 0, separated by commas", param="seeds")
    return seeds


def _show(trial: Trial) -> None:
    rate = f", learning rate {trial.chosen['learning_rate']:g}" if trial.method.is_tuned else ""
    typer.echo(
        f"{trial.method.words}, seed {trial.seed}: {trial.metric} {trial.value:.3f} after {trial.tuning_s:.0f} s, "
        f"best of {trial.num_tries}{rate}",
        err=True,
    )


def _report(found: ComparisonReport, *, as_json: bool) -> None:
    if as_json:
        options.write_json(found.as_json())
        return
    from rich.console import Console
    from rich.table import Table

    summaries = found.summaries
    table = Table(
        "method", f"{summaries[0].metric}, % [95 %]", "interval", "trained parameters", "bytes per task", "tries",
        "tuning, s", "peak memory, MB", "latency, ms",
    )  # fmt: skip
    for summary in summaries:
        table.add_row(*_cells(summary))
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(f"Peak memory on top of the loaded backbone: {found.trials[0].memory_measure}.", style="dim")
    console.print("Latency: median of one request at a time through the engine.", style="dim")


def _cells(summary: Summary) -> list[str]:
    low, high = summary.interval.low, summary.interval.high
    reach = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    peak = summary.peak_memory_bytes
    return [
        summary.method.words,
        f"{100 * summary.value:.1f}{reach}",
        summary.interval.kind,
        f"{summary.num_parameters:,}",
        f"{summary.num_stored_bytes:,}",
        str(summary.num_tries),
        f"{summary.tuning_s:.0f}",
        "not measured" if peak is None else f"{peak / 1e6:.0f}",
        "not served here" if summary.latency_s is None else f"{1000 * summary.latency_s:.1f}",
    ]
