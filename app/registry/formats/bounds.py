"""How much may be said of a version: whoever takes the words checks, before a prompt is made for them."""

from __future__ import annotations

from typing import Final

MAX_LABEL_CHARS: Final = 256
MAX_LABELS: Final = 1024
MAX_TEMPLATE_CHARS: Final = 16_384
MAX_DESCRIPTION_CHARS: Final = 4096
