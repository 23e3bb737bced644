"""How well a prompt does on examples it was not tuned on, on the plain differentiable path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.layout import Template, continue_prompt
from app.task_prompt import TaskPrompt
from app.tuning import metrics
from app.tuning.dataset import Example
from app.tuning.encoding import Batch, EncodedExample, by_length, encode_text_within
from app.tuning.forward import Prefix
from app.tuning.label_tree import LabelTree, encode_labels, label_log_likelihoods
from app.tuning.slices import Slices, run_to_end

MAX_LOGITS = 2**24
"""Logits of one forward, in numbers: bounds memory when labels or vocabularies are many."""


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    metrics: name to value; labelled tasks have accuracy, accuracy_low, accuracy_high (95 %), macro_f1, label_mass (mean
        probability of all labels together); generating ones exact_match, token_f1, rouge_l, and entity_f1 where the
        targets are entity lists; both have num_examples.
    predictions: in the order of the examples.
    confusion: counts, targets by predictions, in the order of `labels`; empty for generating tasks.
    """

    metrics: dict[str, float]
    predictions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    confusion: list[list[int]] = field(default_factory=list)

    @property
    def main_metric(self) -> str:
        """The one to compare versions by."""
        return next(name for name in ("accuracy", "entity_f1", "rouge_l") if name in self.metrics)


def evaluate(
    backbone: Backbone,
    prompt: TaskPrompt | None,
    template: Template,
    labels: Sequence[str],
    examples: Sequence[Example],
    *,
    max_input_tokens: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> Evaluation:
    """With labels: the likeliest label. Without: what greedy decoding writes.

    Args:
        prompt: of any kind; None asks the backbone alone.
        max_input_tokens: longer inputs lose their end; 0 takes what the backbone's positions allow.
        max_new_tokens: of generating tasks.
    """
    return run_to_end(
        evaluate_in_slices(
            backbone,
            prompt,
            template,
            labels,
            examples,
            max_input_tokens=max_input_tokens,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
    )


@torch.no_grad()
def evaluate_in_slices(
    backbone: Backbone,
    prompt: TaskPrompt | None,
    template: Template,
    labels: Sequence[str],
    examples: Sequence[Example],
    *,
    max_input_tokens: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> Slices[Evaluation]:
    """`evaluate`, one forward at a time: whoever shares the device may use it in between."""
    if not examples:
        raise InvalidInput("there are no examples to evaluate on", param="examples")
    inputs = [example.input for example in examples]
    targets = [example.target for example in examples]
    prefix = Prefix.of_prompt(backbone, prompt)
    num_after = max(len(ids) for ids in encode_labels(backbone, template, labels)) if labels else max_new_tokens
    room = _room(backbone, prefix, max_input_tokens, num_after)
    texts = encode_inputs(backbone, prompt, template, inputs, room)
    if labels:
        scores = yield from _score_in_slices(backbone, prefix, template, labels, texts, batch_size)
        return _of_scores(scores, labels, targets)
    answers = yield from _generate_in_slices(backbone, prefix, texts, max_new_tokens, batch_size)
    return _of_texts(answers, targets)


def encode_inputs(
    backbone: Backbone, prompt: TaskPrompt | None, template: Template, inputs: Sequence[str], max_input_tokens: int
) -> list[EncodedExample]:
    """Rows without targets, as they stand behind the prompt."""
    encoded = (encode_text_within(backbone, template, text, max_input_tokens) for text in inputs)
    return [EncodedExample(tuple(continue_prompt(backbone.tokenizer, prompt, ids)), ()) for ids in encoded]


def score_labels(
    backbone: Backbone,
    prefix: Prefix,
    template: Template,
    labels: Sequence[str],
    texts: Sequence[EncodedExample],
    *,
    batch_size: int = 32,
) -> torch.Tensor:
    """log P(label | prompt, text), natural log: (num_texts, num_labels) float32 on CPU."""
    return run_to_end(_score_in_slices(backbone, prefix, template, labels, texts, batch_size))


def _score_in_slices(
    backbone: Backbone,
    prefix: Prefix,
    template: Template,
    labels: Sequence[str],
    texts: Sequence[EncodedExample],
    batch_size: int,
) -> Slices[torch.Tensor]:
    tree = LabelTree.build(encode_labels(backbone, template, labels))
    limit = max(1, MAX_LOGITS // ((len(tree.inner) + 1) * backbone.vocab_size))
    scores = torch.empty(len(texts), len(labels))
    for indexes in by_length(texts, min(batch_size, limit)):
        batch = Batch.collate([texts[i] for i in indexes], backbone.device)
        scores[indexes] = label_log_likelihoods(backbone, prefix, batch, tree).cpu()
        yield
    return scores


def _generate_in_slices(
    backbone: Backbone, prefix: Prefix, texts: Sequence[EncodedExample], max_new_tokens: int, batch_size: int
) -> Slices[list[str]]:
    """What the backbone writes after each text until end-of-sequence, likeliest token first, blanks trimmed."""
    if _window(backbone) is not None:
        batch_size = 1  # a window counts columns, so padding inside it would hide text
    answers = [""] * len(texts)
    for indexes in by_length(texts, batch_size):
        batch = Batch.collate([texts[i] for i in indexes], backbone.device)
        written = yield from _decode(backbone, prefix, batch, max_new_tokens)
        for i, token_ids in zip(indexes, written, strict=True):
            answers[i] = backbone.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
    return answers


def _decode(backbone: Backbone, prefix: Prefix, texts: Batch, max_new_tokens: int) -> Slices[list[list[int]]]:
    """Ids per row, end-of-sequence excluded. Padding stays in the cache, hidden by the mask."""
    device, num_rows = backbone.device, texts.num_rows
    cache = prefix.cache_for(texts.prompt_index)
    mask = torch.cat([prefix.is_real_for(texts.prompt_index), texts.is_real], dim=1)
    starts = prefix.lengths_for(texts.prompt_index)
    columns = torch.arange(texts.token_ids.shape[1], device=device).expand(num_rows, -1)
    step_ids, positions = texts.token_ids, starts + columns
    asked: torch.Tensor = (texts.row_lens - 1)[:, None]
    ends = torch.tensor(backbone.eos_token_ids, dtype=torch.int64, device=device)
    is_done = torch.zeros(num_rows, dtype=torch.bool, device=device)
    written = []
    for step in range(max_new_tokens):
        output = backbone.model(
            inputs_embeds=backbone.embed(step_ids),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=asked,
        )
        chosen = output.logits[:, -1].argmax(dim=-1)
        is_done = is_done | torch.isin(chosen, ends)
        written.append(torch.where(is_done, -1, chosen))
        yield
        if bool(is_done.all()):
            break
        step_ids, positions = chosen[:, None], starts + texts.row_lens[:, None] + step
        mask = torch.cat([mask, torch.ones(num_rows, 1, dtype=torch.bool, device=device)], dim=1)
        asked = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
    rows = torch.stack(written, dim=1).tolist()
    return [[token_id for token_id in row if token_id >= 0] for row in rows]


def _room(backbone: Backbone, prefix: Prefix, max_input_tokens: int, num_after: int) -> int:
    room = backbone.max_model_len - prefix.num_columns - num_after
    if room < 1:
        raise InvalidInput("prompt and answer together are longer than the backbone's positions", param="prompt")
    return min(room, max_input_tokens or room)


def _window(backbone: Backbone) -> int | None:
    return getattr(backbone.model.config.get_text_config(), "sliding_window", None)


def _of_scores(scores: torch.Tensor, labels: Sequence[str], targets: Sequence[str]) -> Evaluation:
    predictions = [labels[i] for i in scores.argmax(dim=1).tolist()]
    share = metrics.accuracy(predictions, targets)
    low, high = metrics.wilson_interval(share, len(targets))
    values = {
        "accuracy": share,
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": metrics.macro_f1(predictions, targets),
        "label_mass": float(scores.double().logsumexp(dim=1).exp().mean()),
        "num_examples": float(len(targets)),
    }
    return Evaluation(values, tuple(predictions), tuple(labels), metrics.confusion(predictions, targets, labels))


def _of_texts(predictions: Sequence[str], targets: Sequence[str]) -> Evaluation:
    values = {
        "exact_match": metrics.exact_match(predictions, targets),
        "token_f1": metrics.token_f1(predictions, targets),
        "rouge_l": metrics.rouge_l(predictions, targets),
    }
    if metrics.is_entity_list(targets):
        values["entity_f1"] = metrics.entity_f1(predictions, targets)
    return Evaluation(values | {"num_examples": float(len(targets))}, tuple(predictions))
