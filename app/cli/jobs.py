"""`softswap jobs`: tuning jobs of a running server."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from app.cli.options import AsJson, takes_server, write
from app.cli.places.remote_server import RemoteServer
from app.cli.views.rows import print_rows
from app.errors import InvalidInput

ROUTE = "/v1/fine_tuning/jobs"

jobs = typer.Typer(
    help="List, show, follow, cancel, pause, resume and forget a server's tuning jobs.",
    no_args_is_help=True,
)
JobId = Annotated[str, typer.Argument(help="The job's id, or `last` for the newest.", show_default=False)]


@jobs.command("ls")
@takes_server
def list_jobs(*, as_json: AsJson = False, server: RemoteServer) -> None:
    """List the jobs, newest first."""
    write(server.pages(ROUTE), _print_jobs, as_json=as_json)


@jobs.command()
@takes_server
def show(*, job: JobId, as_json: AsJson = False, server: RemoteServer) -> None:
    """Show one job, and the versions it has published."""
    path = _path(server, job)
    shown = server.call("GET", path)
    checkpoints = server.pages(f"{path}/checkpoints")[::-1]
    write({**shown, "checkpoints": checkpoints}, _print_job, as_json=as_json)


@jobs.command()
@takes_server
def follow(*, job: JobId, as_json: AsJson = False, server: RemoteServer) -> None:
    """Show what happens in a job until it ends; exit code 1 if it fails.

    A broken connection is resumed at the event it broke at, even after a restart of the server.
    """
    path = _path(server, job)
    for event in server.follow(f"{path}/events?stream=true"):
        write(event, _print_event, as_json=as_json)
    if server.call("GET", path)["status"] == "failed":
        raise typer.Exit(1)


def _add_order(order: str, what_it_does: str) -> None:
    @jobs.command(order, help=what_it_does)
    @takes_server
    def give(*, job: JobId, server: RemoteServer) -> None:
        changed = server.call("POST", f"{_path(server, job)}/{order}")
        typer.echo(f"{changed['id']} is {changed['status']}")


_add_order("cancel", "End a job for good. Checkpoints it has published stay.")
_add_order("pause", "Stop a job after its present update, until it is resumed.")
_add_order("resume", "Let a paused job continue where it stopped.")


@jobs.command("rm")
@takes_server
def remove(*, job: JobId, server: RemoteServer) -> None:
    """Delete a job that has ended, with its events. The versions it published stay."""
    removed = server.call("DELETE", _path(server, job))
    typer.echo(f"{removed['id']} removed")


def _path(server: RemoteServer, job: str) -> str:
    if job != "last":
        return f"{ROUTE}/{quote(job, safe='')}"
    newest = server.call("GET", f"{ROUTE}?limit=1")["data"]
    if not newest:
        raise InvalidInput("the server has no jobs", param="job")
    return f"{ROUTE}/{newest[0]['id']}"


def _print_event(event: dict[str, Any]) -> None:
    clock = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
    typer.echo(f"{clock} {event['message']}")


def _print_jobs(found: list[dict[str, Any]]) -> None:
    print_rows(("job", "task", "status", "updates", "result", "created"), map(_cells, found))


def _cells(job: dict[str, Any]) -> tuple[str, ...]:
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["created_at"]))
    updates = f"{job['step']}/{job['total_steps'] or '-'}"
    return job["id"], job["task"], job["status"], updates, job["fine_tuned_model"] or "-", created


def _print_job(job: dict[str, Any]) -> None:
    for name in ("id", "task", "status", "model", "training_file", "validation_file", "fine_tuned_model"):
        if job[name]:
            typer.echo(f"{name}: {job[name]}")
    typer.echo(f"updates: {job['step']} of {job['total_steps'] or '?'}")
    for name in ("created_at", "estimated_finish", "finished_at"):
        if job[name]:
            typer.echo(f"{name}: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(job[name]))}")
    if job["error"]:
        typer.echo(f"error: {job['error']['message']} ({job['error']['code']})")
    for checkpoint in job["checkpoints"]:
        figures = [f"{name} {value:.4f}" for name, value in checkpoint["metrics"].items() if name != "step"]
        typer.echo(
            f"  {checkpoint['fine_tuned_model_checkpoint']:<24} after {checkpoint['step_number']:>6} updates  "
            f"{', '.join(figures)}"
        )
