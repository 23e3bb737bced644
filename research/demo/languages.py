"""Short passages in twenty languages: the translated messages of Django, a dependency of pre-training alone (BSD)."""

from __future__ import annotations

import gettext
import re
from importlib.util import find_spec
from pathlib import Path

CODE_TO_LANGUAGE = {
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "es": "Spanish",
    "et": "Estonian",
    "fi": "Finnish",
    "fr": "French",
    "hr": "Croatian",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "nb": "Norwegian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "sk": "Slovak",
    "sv": "Swedish",
    "tr": "Turkish",
}
MIN_CHARS = 16


def read_messages() -> dict[str, list[str]]:
    """Messages of more than a few words by language, English included, without those that hold placeholders.

    Raises:
        RuntimeError: `django` is not installed.
    """
    found = find_spec("django")
    if found is None or found.origin is None:
        raise RuntimeError("pre-training reads the translations that Django ships: pip install django")
    folder = Path(found.origin).parent
    language_to_messages: dict[str, set[str]] = {}
    for path in sorted(folder.glob("**/locale/*/LC_MESSAGES/*.mo")):
        if language := CODE_TO_LANGUAGE.get(path.parts[-3]):
            english, translated = _catalogue(path)
            language_to_messages.setdefault(language, set()).update(translated)
            language_to_messages.setdefault("English", set()).update(english)
    return {language: sorted(messages) for language, messages in language_to_messages.items()}


def _catalogue(path: Path) -> tuple[list[str], list[str]]:
    """The plain messages of one catalogue that are translated: in English and in its language."""
    with path.open("rb") as file:
        pairs = gettext.GNUTranslations(file)._catalog.items()  # type: ignore[attr-defined]
    kept = [(key, text) for key, text in pairs if isinstance(key, str) and _is_plain(text) and key != text]
    return [key for key, _ in kept if _is_plain(key)], [text for _, text in kept]


def _is_plain(text: str) -> bool:
    return len(text) >= MIN_CHARS and " " in text and not re.search(r"[%{}<>\x04]", text)
