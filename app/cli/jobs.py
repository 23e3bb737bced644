"""`softswap jobs`: tuning jobs of a running server."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from app.cli.options.json_output import AsJson, write_json
from app.cli.options.setting_options import ApiKey, find_server
from app.cli.remote.remote_server import RemoteServer
from app.errors import InvalidInput

ROUTE = "/v1/fine_tuning/jobs"
MAX_LINE_CHARS = 1000  # an id that is cut to the width of a terminal is useless
DEFAULT_URL = "http://127.0.0.1:8000"

jobs = typer.Typer(
    help="List, show, follow, cancel, pause, resume and forget a server's tuning jobs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Url = Annotated[str | None, typer.Option(help=f"The server. Also SOFTSWAP_URL. (default: {DEFAULT_URL})")]
JobId = Annotated[str, typer.Argument(help="The job's id, or `last` for the newest.", show_default=False)]


@jobs.command("ls")
def list_jobs(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List the jobs, newest first."""
    found = _server(url, api_key).pages(ROUTE)
    if as_json:
        for job in found:
            write_json(job)
    else:
        _print_jobs(found)


@jobs.command()
def show(job: JobId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Show one job, and the versions it has published."""
    server = _server(url, api_key)
    path = _path(server, job)
    shown = server.call("GET", path)
    checkpoints = server.pages(f"{path}/checkpoints")[::-1]
    if as_json:
        write_json({**shown, "checkpoints": checkpoints})
    else:
        _print_job(shown, checkpoints)


@jobs.command()
def follow(job: JobId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Show what happens in a job until it ends; exit code 1 if it fails.

    A broken connection is resumed where it broke, even if the server was restarted meanwhile.
    """
    server = _server(url, api_key)
    path = _path(server, job)
    for event in server.follow(f"{path}/events?stream=true"):
        if as_json:
            write_json(event)
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
            typer.echo(f"{clock} {event['message']}")
    if server.call("GET", path)["status"] == "failed":
        raise typer.Exit(1)


@jobs.command()
def cancel(job: JobId, url: Url = None, api_key: ApiKey = None) -> None:
    """End a job for good. Checkpoints it has published stay."""
    _order(url, api_key, job, "cancel")


@jobs.command()
def pause(job: JobId, url: Url = None, api_key: ApiKey = None) -> None:
    """Stop a job after its present update, until it is resumed."""
    _order(url, api_key, job, "pause")


@jobs.command()
def resume(job: JobId, url: Url = None, api_key: ApiKey = None) -> None:
    """Let a paused job continue where it stopped."""
    _order(url, api_key, job, "resume")


@jobs.command("rm")
def remove(job: JobId, url: Url = None, api_key: ApiKey = None) -> None:
    """Delete a job that has ended, with its events. The versions it published stay."""
    server = _server(url, api_key)
    removed = server.call("DELETE", _path(server, job))
    typer.echo(f"{removed['id']} removed")


def _server(url: str | None, api_key: str | None) -> RemoteServer:
    """The named one, or one at the default address: only servers have jobs."""
    return find_server(url, api_key) or RemoteServer(DEFAULT_URL, api_key)


def _path(server: RemoteServer, job: str) -> str:
    if job != "last":
        return f"{ROUTE}/{quote(job, safe='')}"
    newest = server.call("GET", f"{ROUTE}?limit=1")["data"]
    if not newest:
        raise InvalidInput("the server has no jobs", param="job")
    return f"{ROUTE}/{newest[0]['id']}"


def _order(url: str | None, api_key: str | None, job: str, order: str) -> None:
    server = _server(url, api_key)
    changed = server.call("POST", f"{_path(server, job)}/{order}")
    typer.echo(f"{changed['id']} is {changed['status']}")


def _print_jobs(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "task", "status", "updates", "result", "created", box=None, pad_edge=False)
    for job in found:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["created_at"]))
        updates = f"{job['step']}/{job['total_steps'] or '-'}"
        table.add_row(job["id"], job["task"], job["status"], updates, job["fine_tuned_model"] or "-", created)
    Console(width=MAX_LINE_CHARS, soft_wrap=True).print(table)


def _print_job(job: dict[str, Any], checkpoints: list[dict[str, Any]]) -> None:
    for name in ("id", "task", "status", "model", "training_file", "validation_file", "fine_tuned_model"):
        if job[name]:
            typer.echo(f"{name}: {job[name]}")
    typer.echo(f"updates: {job['step']} of {job['total_steps'] or '?'}")
    for name in ("created_at", "estimated_finish", "finished_at"):
        if job[name]:
            typer.echo(f"{name}: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(job[name]))}")
    if job["error"]:
        typer.echo(f"error: {job['error']['message']} ({job['error']['code']})")
    for checkpoint in checkpoints:
        figures = [f"{name} {value:.4f}" for name, value in checkpoint["metrics"].items() if name != "step"]
        typer.echo(
            f"  {checkpoint['fine_tuned_model_checkpoint']:<24} after {checkpoint['step_number']:>6} updates  "
            f"{', '.join(figures)}"
        )
