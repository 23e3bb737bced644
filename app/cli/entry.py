"""The `softswap` command. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.

Nothing here imports torch; commands that need it import it when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from app.cli.backbones.models import models
from app.cli.backbones.pull import pull
from app.cli.compare import compare
from app.cli.distill import distill
from app.cli.doctor import doctor
from app.cli.evaluate import evaluate
from app.cli.jobs import jobs
from app.cli.pruning.prune import prune
from app.cli.retuning.retune import retune
from app.cli.run import run
from app.cli.serve import serve
from app.cli.tasks import tasks
from app.cli.tune import tune
from app.errors import NoSuchTask, SoftswapError

app = typer.Typer(
    name="softswap",
    help="Serve many tuned tasks from one frozen language model.",
    epilog="Exit codes: 0 success, 1 failure, 2 wrong usage. Every setting: docs/settings.md.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel="Use")(serve)
app.command(rich_help_panel="Use")(run)
app.command(rich_help_panel="Use")(pull)
app.command(rich_help_panel="Make")(tune)
app.command(rich_help_panel="Make")(retune)
app.command(rich_help_panel="Make")(compare)
app.command(rich_help_panel="Make")(distill)
app.command("eval", rich_help_panel="Make")(evaluate)
tasks.command()(prune)
app.add_typer(tasks, name="tasks", rich_help_panel="Make")
app.add_typer(jobs, name="jobs", rich_help_panel="Make")
app.command(rich_help_panel="Look")(doctor)
app.command(rich_help_panel="Look")(models)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"softswap {version('softswap')}")
        except PackageNotFoundError:
            typer.echo("softswap, run from source")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """See the help of each command for more."""


def main() -> None:
    """Run the command line; an expected error is one line on stderr."""
    try:
        app()
    except NoSuchTask as error:
        typer.echo(f"softswap: {error.pointing_to('`softswap tasks ls` lists them')}", err=True)
        sys.exit(1)
    except SoftswapError as error:
        quoted = f": {error.quote!r}" if error.quote else ""
        typer.echo(f"softswap: {error.message}{quoted}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever reads the pipe has seen enough; nothing may be written to it again, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a disk that is full, a folder that cannot be entered: nothing that a traceback explains
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"softswap: {place}{error.strerror or error}", err=True)
        sys.exit(1)
