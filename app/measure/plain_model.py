"""How well a prompt does on examples it was not tuned on: the figures, and the plain path to the answers.

The server finds the same answers through its engine (`app.answers.measuring.evaluation`); a test holds the two
equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp

from app.engine.threads.slices import Slices, run_to_end
from app.errors import InvalidInput
from app.measure import metrics
from app.measure.calibration import Calibration, fit_temperature
from app.measure.dataset import Example, check_labels
from app.measure.encoding import EncodedExample, by_length, collate, encode_text_within
from app.measure.label_tree import LabelTree, encode_labels, label_log_likelihoods
from app.measure.metrics import LabelScore
from app.model.backbone import Backbone
from app.model.layout import BARE, Template, continue_prompt
from app.model.prompted_forward import PaddedBatch, PromptPrefix
from app.registry.evaluations.evaluation_folder import RecordedEvaluation
from app.registry.version import Version
from app.task_prompt import TaskPrompt

MAX_LOGITS = 2**24
"""Logits of one forward, in numbers: bounds memory when labels or vocabularies are many."""
DEFAULT_MAX_NEW_TOKENS = 64
NUM_ENCODED_AT_ONCE = 100
"""Texts to token ids in one slice: thousands would take as long as many forwards."""


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    metrics: name to value. Labelled tasks have accuracy, accuracy_low, accuracy_high (95 %), macro_f1, label_mass (mean
        probability of all labels together), nll and ece (the calibration's); with a temperature other than 1 also
        uncalibrated_nll and uncalibrated_ece, which are those at 1. Generating ones have exact_match, token_f1,
        rouge_l, and entity_f1 where the targets are entity lists. Both have num_examples.
    predictions: in the order of the examples.
    labels: the task's; empty where it generates, as are the rest.
    confusion: counts, targets by predictions, in the order of `labels`.
    per_label: in that order.
    calibration: of the probabilities as they are served, with the version's temperature; a vote has none.
    """

    metrics: dict[str, float]
    predictions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    per_label: tuple[LabelScore, ...] = ()
    calibration: Calibration | None = None

    @classmethod
    def of_scores(
        cls, scores: npt.ArrayLike, labels: Sequence[str], targets: Sequence[str], *, temperature: float | None = 1.0
    ) -> Evaluation:
        """Of a labelled task.

        Args:
            scores: (num_examples, num_labels) log P(label | prompt, text), natural logarithm.
            targets: each one of the labels.
            temperature: of the probabilities; None fits it to these very examples.
        """
        values = np.asarray(scores, dtype=np.float64)
        right = [labels.index(target) for target in targets]
        judged = cls.of_labels([labels[i] for i in values.argmax(axis=1)], labels, targets)
        raw = Calibration.measure(values, right)
        tempered = Calibration.measure(values, right, temperature or fit_temperature(values, right))
        figures = {
            "label_mass": float(np.exp(logsumexp(values, axis=1)).mean()),
            "nll": tempered.nll,
            "ece": tempered.error,
        }
        if tempered.temperature != 1.0:
            figures |= {"uncalibrated_nll": raw.nll, "uncalibrated_ece": raw.error}
        return replace(judged, metrics=judged.metrics | figures, calibration=tempered)

    @classmethod
    def of_labels(cls, predictions: Sequence[str], labels: Sequence[str], targets: Sequence[str]) -> Evaluation:
        """Of a labelled task of which no more is known than what it answers, such as a vote."""
        share = metrics.accuracy(predictions, targets)
        low, high = metrics.wilson_interval(share, len(targets))
        figures = {
            "num_examples": float(len(targets)),
            "accuracy": share,
            "accuracy_low": low,
            "accuracy_high": high,
            "macro_f1": metrics.macro_f1(predictions, targets),
        }
        return cls(
            figures,
            tuple(predictions),
            tuple(labels),
            metrics.confusion(predictions, targets, labels),
            metrics.per_label(predictions, targets, labels),
        )

    @classmethod
    def of_texts(cls, predictions: Sequence[str], targets: Sequence[str]) -> Evaluation:
        """Of a task that generates."""
        figures = {
            "exact_match": metrics.exact_match(predictions, targets),
            "token_f1": metrics.token_f1(predictions, targets),
            "rouge_l": metrics.rouge_l(predictions, targets),
        }
        if metrics.is_entity_list(targets):
            figures["entity_f1"] = metrics.entity_f1(predictions, targets)
        return cls(figures | {"num_examples": float(len(targets))}, tuple(predictions))

    @property
    def main_metric(self) -> str:
        """The one to compare versions by."""
        return next(name for name in ("accuracy", "entity_f1", "rouge_l") if name in self.metrics)

    def record(self, digest: str, data_sha256: str, data_name: str = "") -> RecordedEvaluation:
        """As the registry keeps it. Args: digest: of the prompt that was measured."""
        return RecordedEvaluation(digest=digest, data_sha256=data_sha256, data_name=data_name, metrics=self.metrics)

    @property
    def label_temperature(self) -> float | None:
        """Of a labelled task."""
        return None if self.calibration is None else self.calibration.temperature


def evaluate(
    backbone: Backbone,
    prompt: TaskPrompt | None,
    template: Template,
    labels: Sequence[str],
    examples: Sequence[Example],
    *,
    label_temperature: float | None = 1.0,
    stop: Sequence[str] = (),
    max_input_tokens: int = 0,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    batch_size: int = 32,
) -> Evaluation:
    """With labels: the likeliest label. Without: what greedy decoding writes.

    Args:
        prompt: of any kind; None asks the backbone alone.
        label_temperature: of the labels' probabilities; None fits it to these very examples.
        stop: strings that end a generated text and are not part of it.
        max_input_tokens: longer inputs lose their end; 0 takes what the backbone's positions allow.
        max_new_tokens: of generating tasks.

    Raises InvalidInput: no examples, a target that is no label, or a prompt that leaves no room.
    """
    return run_to_end(
        evaluate_in_slices(
            backbone,
            prompt,
            template,
            labels,
            examples,
            label_temperature=label_temperature,
            stop=stop,
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
    label_temperature: float | None = 1.0,
    stop: Sequence[str] = (),
    max_input_tokens: int = 0,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    batch_size: int = 32,
) -> Slices[Evaluation]:
    """`evaluate`, one forward at a time: whoever shares the device may use it in between."""
    if not examples:
        raise InvalidInput("there are no examples to evaluate on", param="examples")
    if labels:
        check_labels(examples, labels, "examples")
    targets = [example.target for example in examples]
    num_after = max(map(len, encode_labels(backbone, template, labels))) if labels else max_new_tokens
    num_virtual_tokens = prompt.num_virtual_tokens if prompt else 0
    room = input_room(backbone.max_model_len, num_virtual_tokens, num_after, max_input_tokens)
    texts = []
    for start in range(0, len(examples), NUM_ENCODED_AT_ONCE):
        inputs = [example.input for example in examples[start : start + NUM_ENCODED_AT_ONCE]]
        texts += encode_inputs(backbone, prompt, template, inputs, room)
        yield
    prefix = PromptPrefix.of_prompt(backbone, prompt)
    if labels:
        scores = yield from score_labels_in_slices(backbone, prefix, template, labels, texts, batch_size)
        return Evaluation.of_scores(scores, labels, targets, temperature=label_temperature)
    written = yield from generate_in_slices(backbone, prefix, texts, max_new_tokens, batch_size)
    return Evaluation.of_texts([cut_at(text, stop) for text in written], targets)


def evaluate_version(
    backbone: Backbone, version: Version, prompt: TaskPrompt, examples: Sequence[Example], *, batch_size: int = 32
) -> Evaluation:
    """A published version as it is served: its template, labels, temperature, stop strings and longest answer.

    Other sampling defaults play no part: an evaluation is greedy.
    """
    return run_to_end(evaluate_version_in_slices(backbone, version, prompt, examples, batch_size=batch_size))


def evaluate_version_in_slices(
    backbone: Backbone, version: Version, prompt: TaskPrompt, examples: Sequence[Example], *, batch_size: int = 32
) -> Slices[Evaluation]:
    """`evaluate_version`, one forward at a time."""
    return evaluate_in_slices(
        backbone,
        prompt,
        version.template or BARE,
        version.labels,
        examples,
        label_temperature=version.label_temperature or 1.0,
        stop=stop_strings(version.sampling),
        max_new_tokens=longest_answer(version.sampling),
        batch_size=batch_size,
    )


def stop_strings(sampling: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a version's sampling defaults."""
    stop = sampling.get("stop", ())
    return (stop,) if isinstance(stop, str) else tuple(stop)


def longest_answer(sampling: Mapping[str, Any]) -> int:
    """In tokens, of a version's sampling defaults."""
    return int(sampling.get("max_tokens", DEFAULT_MAX_NEW_TOKENS))


def input_room(max_model_len: int, num_virtual_tokens: int, num_after: int, max_input_tokens: int = 0) -> int:
    """Tokens of text that fit between a prompt and an answer. Raises InvalidInput: none do."""
    room = max_model_len - num_virtual_tokens - num_after
    if room < 1:
        raise InvalidInput("prompt and answer together are longer than the backbone's positions", param="prompt")
    return min(room, max_input_tokens or room)


def encode_inputs(
    backbone: Backbone, prompt: TaskPrompt | None, template: Template, inputs: Sequence[str], max_input_tokens: int
) -> list[EncodedExample]:
    """Rows without targets, as they stand behind the prompt."""
    encoded = (encode_text_within(backbone, template, text, max_input_tokens) for text in inputs)
    return [EncodedExample(tuple(continue_prompt(backbone.tokenizer, prompt, ids)), ()) for ids in encoded]


def score_labels_in_slices(
    backbone: Backbone,
    prefix: PromptPrefix,
    template: Template,
    labels: Sequence[str],
    texts: Sequence[EncodedExample],
    batch_size: int,
) -> Slices[torch.Tensor]:
    """log P(label | prompt, text), natural log: (num_texts, num_labels) float32 on CPU."""
    tree = LabelTree.build(encode_labels(backbone, template, labels))
    limit = max(1, MAX_LOGITS // ((len(tree.inner) + 1) * backbone.vocab_size))
    scores = torch.empty(len(texts), len(labels))
    for indexes in by_length(texts, min(batch_size, limit)):
        batch = collate([texts[i] for i in indexes], backbone.device)
        scores[indexes] = label_log_likelihoods(backbone, prefix, batch, tree).cpu()
        yield
    return scores


def generate_in_slices(
    backbone: Backbone,
    prefix: PromptPrefix,
    texts: Sequence[EncodedExample],
    max_new_tokens: int,
    batch_size: int,
    prompt_index: Sequence[int] | None = None,
) -> Slices[list[str]]:
    """What the backbone writes after each text until end-of-sequence, likeliest token first, blanks trimmed.

    Args: prompt_index: of each text, its prompt in the prefix; None: all have the first.
    """
    if _window(backbone) is not None:
        batch_size = 1  # a window counts columns, so padding inside it would hide text
    answers = [""] * len(texts)
    for indexes in by_length(texts, batch_size):
        prompts = prompt_index and [prompt_index[i] for i in indexes]
        batch = collate([texts[i] for i in indexes], backbone.device, prompts)
        written = yield from _decode(backbone, prefix, batch, max_new_tokens)
        for i, token_ids in zip(indexes, written, strict=True):
            answers[i] = backbone.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
    return answers


def _decode(
    backbone: Backbone, prefix: PromptPrefix, texts: PaddedBatch, max_new_tokens: int
) -> Slices[list[list[int]]]:
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


def _window(backbone: Backbone) -> int | None:
    return getattr(backbone.model.config.get_text_config(), "sliding_window", None)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text in front of the first stop string in it, blanks trimmed."""
    places = [text.find(each) for each in stop if each in text]
    return text[: min(places)].strip() if places else text
