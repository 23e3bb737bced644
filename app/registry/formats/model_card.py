"""README.md, a published version's model card: what the prompt is, for people and for the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.registry.formats.manifest import Manifest
from app.task_prompt import PromptKind

CARD_FILE = "README.md"
_KIND_TO_SENTENCE = {
    PromptKind.EMBEDDINGS: "A soft prompt: {n} virtual tokens before the text (Lester et al. 2021).",
    PromptKind.KV: "A key-value prefix: {n} virtual tokens in every layer's cache (Li and Liang 2021).",
    PromptKind.TEXT: "A text of {n} tokens before the input.",
}
_MAX_LABELS = 20


def render_card(manifest: Manifest) -> str:
    """Markdown with the hub's front matter."""
    name, library = manifest.backbone.name, "softswap" if manifest.kind is PromptKind.TEXT else "peft"
    tags = "tags: [softswap, prompt-tuning]"
    sections = [
        f"---\nbase_model: {json.dumps(name)}\nlibrary_name: {library}\n{tags}\n---",
        f"# {manifest.task}, version {manifest.number}",
        manifest.description,
        _KIND_TO_SENTENCE[manifest.kind].format(n=manifest.num_virtual_tokens)
        + f" Made for `{name}` (fingerprint `{manifest.backbone.fingerprint[:12]}`); another backbone"
        " refuses it.",
        _fenced("Template", manifest.template),
        _labels(manifest.labels, manifest.label_temperature),
        _table("Metrics", manifest.metrics),
        _table("Tuning", manifest.tuning),
        _table("Provenance", manifest.provenance),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _fenced(title: str, text: str | None) -> str:
    return f"## {title}\n\n~~~~\n{text}\n~~~~" if text is not None else ""


def _labels(labels: tuple[str, ...], temperature: float | None) -> str:
    if not labels:
        return ""
    shown = ", ".join(f"`{label}`" for label in labels[:_MAX_LABELS])
    rest = len(labels) - _MAX_LABELS
    more = f" and {rest} more" if rest > 0 else ""
    tempered = "" if temperature is None else f"\n\nTheir probabilities have the temperature {temperature:.4g}."
    return f"## Labels\n\n{shown}{more}{tempered}"


def _table(title: str, name_to_value: Mapping[str, Any]) -> str:
    if not name_to_value:
        return ""
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in name_to_value.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
