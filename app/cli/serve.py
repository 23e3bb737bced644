"""`softswap serve`."""

from __future__ import annotations

from app.cli.options import takes_settings
from app.settings import Settings


@takes_settings(*Settings.model_fields)
def serve(*, settings: Settings) -> None:
    """Serve the tasks over HTTP, in OpenAI's format and on routes of our own.

    Without options, this serves the demo tasks on the demo backbone, offline:

        softswap serve
        curl --json '{"input": "a gorgeous, witty film"}' http://127.0.0.1:8000/v1/tasks/sentiment/run

    Each option is also an environment variable: --port is SOFTSWAP_PORT. http://127.0.0.1:8000/docs shows the routes.
    """
    from app.main import serve as serve_http
    from app.telemetry import configure_logging

    configure_logging(settings.log_level)
    serve_http(settings)
