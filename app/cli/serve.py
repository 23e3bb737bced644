"""`softswap serve`."""

from __future__ import annotations

import logging
from socket import socket

from app.address import bind
from app.cli.backbones.pull import obtain
from app.cli.options import takes_settings
from app.cli.places.paths import require_folder
from app.model.loading.positions import declared_positions, require_positions
from app.settings import DEFAULT_MODEL, Settings

logger = logging.getLogger(__name__)


@takes_settings(*Settings.model_fields)
def serve(*, settings: Settings) -> None:
    """Serve the tasks over HTTP, in OpenAI's format and on routes of our own.

    Without options, this serves the demo tasks on the demo backbone, offline:

        softswap serve
        curl --json '{"input": "a gorgeous, witty film"}' http://127.0.0.1:8000/v1/tasks/sentiment/run

    Each option is also an environment variable: --port is SOFTSWAP_PORT. http://127.0.0.1:8000/docs shows the routes.
    """
    from app.telemetry import configure_logging

    configure_logging(settings.log_level)
    address = take_address(settings)
    obtained = obtain(settings, write=logger.info)
    from app.main import serve as serve_http

    serve_http(obtained, address)


def take_address(settings: Settings) -> socket:
    """Once everything that can be refused without a model is found to be right. Raises InvalidInput."""
    settings.read_api_keys()
    for name, is_written in (("registry", False), ("state", True), ("prefix_store", True), ("cache", False)):
        folder = getattr(settings, name)
        if folder is not None:
            require_folder(folder, name, is_written=is_written)
    from app.model.loading.source import find_model

    found = find_model(settings.model or DEFAULT_MODEL, settings.cache_folder)
    found.check_revision(settings.revision)
    require_positions(settings.max_model_len, declared_positions(found.path), found.name)
    return bind(settings.host, settings.port)
