"""`python -m app.cli` is `softswap`."""

from __future__ import annotations

from app.cli.entry import main

main()
