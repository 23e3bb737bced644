"""A report on virtual tokens as `/v1/tasks/{task}/tokens` and `softswap tasks show --tokens --json` show it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from app.http.tasks.tokens_schema import PromptTokens
from app.insight.report import PromptReport
from app.task_prompt import PromptKind


def tokens_object(report: PromptReport) -> PromptTokens:
    """Dump it without the fields that are not set."""
    view = report.view
    fields: dict[str, Any] = {
        "model": report.model,
        "kind": view.kind.value,
        "note": view.note,
        "virtual_tokens": [asdict(token) for token in view.virtual_tokens],
        "clusters": view.clusters,
        "near_duplicates": view.near_duplicates,
    }
    if view.kind is PromptKind.KV:
        fields["layers"] = [_with_text_keys(asdict(layer)) for layer in view.layers]
    else:
        fields["vocabulary_norms"] = _by_percentile(view.vocabulary_norms)
    if report.difference is not None:
        fields["difference"] = {"model": report.compared, **asdict(report.difference)}
    if report.effects is not None:
        fields["effects"] = asdict(report.effects)
    return PromptTokens.model_validate(fields)


def _with_text_keys(layer: dict[str, Any]) -> dict[str, Any]:
    return {name: _by_percentile(value) if isinstance(value, dict) else value for name, value in layer.items()}


def _by_percentile(norms: dict[int, float]) -> dict[str, float]:
    return {str(percentile): norm for percentile, norm in norms.items()}
