"""Publication: a task prompt and what is to be known about it, as the files of a version's folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.registry.initial_rows import INITIAL_FILE, encode_initial
from app.registry.manifest import BackboneName, Manifest, TensorFile
from app.registry.model_card import render_card
from app.registry.peft_checkpoint import TENSOR_FILE, encode_checkpoint
from app.registry.task_folder import CARD_FILE, MANIFEST_FILE
from app.task_prompt import TaskPrompt

if TYPE_CHECKING:
    import torch

    from app.model.backbone import Backbone


def encode_version(
    task: str,
    number: int,
    prompt: TaskPrompt,
    backbone: Backbone,
    fields: Mapping[str, Any],
    *,
    initial: torch.Tensor | None = None,
) -> dict[str, bytes]:
    """Names to contents.

    Args:
        fields: those of Manifest that the prompt and its place do not say.
        initial: the rows tuning started from.

    Raises: InvalidInput: a field is wrong.
    """
    files = encode_checkpoint(prompt, backbone)
    if initial is not None:
        files[INITIAL_FILE] = encode_initial(initial, prompt)
    manifest = Manifest.build(
        task=task,
        number=number,
        digest=prompt.digest,
        kind=prompt.kind,
        num_virtual_tokens=prompt.num_virtual_tokens,
        backbone=BackboneName(fingerprint=prompt.backbone_fingerprint, name=backbone.name),
        tensor=_describe(files.get(TENSOR_FILE)),
        initial=_describe(files.get(INITIAL_FILE)),
        text=prompt.text,
        token_ids=prompt.token_ids,
        created_at=int(time.time()),
        **fields,
    )
    return files | {CARD_FILE: render_card(manifest).encode(), MANIFEST_FILE: manifest.encode()}


def _describe(content: bytes | None) -> TensorFile | None:
    return None if content is None else TensorFile(sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))
