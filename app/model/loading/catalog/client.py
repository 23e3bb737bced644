"""open_client: HTTP the way pip is configured to speak it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import InvalidInput

if TYPE_CHECKING:
    import httpx

    from app.model.loading.catalog.pip_configuration import PipConfiguration


def open_client(configuration: PipConfiguration) -> httpx.Client:
    """Raises InvalidInput: the proxy or a certificate cannot be used."""
    import httpx

    proxy = configuration.proxy
    if proxy is not None and "://" not in proxy:  # which is how pip may be given it
        proxy = f"http://{proxy}"
    try:
        unchecked = httpx.HTTPTransport(verify=False, proxy=proxy)
        return httpx.Client(
            verify=_trust(configuration),
            proxy=proxy,
            mounts={f"all://{host}": unchecked for host in configuration.trusted_hosts},
            follow_redirects=True,
            headers={"user-agent": "softswap"},
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise InvalidInput(f"the proxy or the certificates of pip's configuration cannot be used ({error})") from error


def _trust(configuration: PipConfiguration) -> ssl.SSLContext:
    """The certificates that pip is told to trust, else those of the system and of the package that httpx brings."""
    import certifi

    cert = configuration.cert
    if cert is None:
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
    elif Path(cert).is_dir():
        context = ssl.create_default_context(capath=cert)
    else:
        context = ssl.create_default_context(cafile=cert)
    if configuration.client_cert is not None:
        context.load_cert_chain(configuration.client_cert)
    return context
