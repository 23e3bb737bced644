"""The plain model: answers of the backbone in batches, without the engine.

Tuning jobs, which take turns on the device, and offline commands measure with it. The server finds the same answers
through its engine (`app.answers.measuring.evaluation`); a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.engine.output.detokenizer import write_text
from app.engine.threads.device_lease import Slices, run_to_end
from app.measure.dataset import Example
from app.measure.encoding import EncodedExample, by_length, collate
from app.measure.evaluation import Evaluation, Measurement
from app.measure.label_tree import LabelTree, label_log_likelihoods
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import encode_labels
from app.model.prompted_forward import PaddedBatch, PromptPrefix
from app.model.threads import by_load
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt

NUM_ENCODED_AT_ONCE = 100
"""Texts to token ids in one slice: thousands would take as long as many forwards."""


def evaluate(
    backbone: Backbone, served: ServedPrompt, examples: Sequence[Example], *, batch_size: int = 32
) -> Evaluation:
    """With labels: the likeliest label. Without: what greedy decoding writes. The device is the caller's alone.

    Raises InvalidInput: no examples, a target that is no label, or a prompt that leaves no room.
    """
    return measure(backbone, Measurement(served, examples), batch_size=batch_size)


def measure(backbone: Backbone, asked: Measurement, *, batch_size: int = 32) -> Evaluation:
    """As `evaluate`."""
    return run_to_end(by_load(PlainModel(backbone, batch_size).evaluate(asked)))


class PlainModel:
    """Every method computes slice by slice, one forward each: others may use the device in between.

    Args: batch_size: rows of a forward, at most.
    """

    def __init__(self, backbone: Backbone, batch_size: int = 32) -> None:
        self._backbone = backbone
        self._batch_size = batch_size
        self._last_prefix: tuple[str, PromptPrefix] | None = None

    def evaluate(self, asked: Measurement) -> Slices[Evaluation]:
        if asked.served.labels:
            return asked.evaluate_scores((yield from self.score(asked.served, asked.inputs)))
        return asked.evaluate_texts((yield from self.generate(asked.served, asked.inputs)))

    @torch.no_grad()
    def score(self, served: ServedPrompt, inputs: Sequence[str]) -> Slices[torch.Tensor]:
        """log P(label | prompt, text), natural log: (num_inputs, num_labels) float32 on CPU."""
        backbone = self._backbone
        label_ids = encode_labels(backbone, served.template, served.labels)
        texts = yield from self._encode(served, inputs, max(map(len, label_ids)))
        prefix = self._prefix(served.prompt)
        tree = LabelTree.build(label_ids)
        scores = torch.empty(len(texts), len(label_ids))
        for indexes in by_length(texts, min(self._batch_size, tree.max_rows(backbone.vocab_size))):
            batch = collate([texts[i] for i in indexes], backbone.device)
            scores[indexes] = label_log_likelihoods(backbone, prefix, batch, tree).cpu()
            yield
        return scores

    @torch.no_grad()
    def generate(self, served: ServedPrompt, inputs: Sequence[str]) -> Slices[list[str]]:
        """The likeliest answers, each up to its stop string, blanks trimmed."""
        texts = yield from self._encode(served, inputs, served.max_new_tokens)
        prefix = self._prefix(served.prompt)
        return (yield from generate_in_slices(self._backbone, prefix, texts, served.params, self._batch_size))

    def _prefix(self, prompt: TaskPrompt | None) -> PromptPrefix:
        """The last prompt's is kept."""
        if prompt is None:
            return PromptPrefix()
        if self._last_prefix is None or self._last_prefix[0] != prompt.digest:
            self._last_prefix = prompt.digest, PromptPrefix.of_prompt(self._backbone, prompt)
        return self._last_prefix[1]

    def _encode(
        self, served: ServedPrompt, inputs: Sequence[str], num_answer_tokens: int
    ) -> Slices[list[EncodedExample]]:
        room = served.input_room(self._backbone.max_model_len, num_answer_tokens)
        texts: list[EncodedExample] = []
        for start in range(0, len(inputs), NUM_ENCODED_AT_ONCE):
            some = inputs[start : start + NUM_ENCODED_AT_ONCE]
            texts += served.encode(self._backbone, some, room, num_before=start)
            yield
        return texts


def generate_in_slices(
    backbone: Backbone,
    prefix: PromptPrefix,
    texts: Sequence[EncodedExample],
    params: SamplingParams,
    batch_size: int,
    prompt_index: Sequence[int] | None = None,
) -> Slices[list[str]]:
    """What the backbone writes after each text until its end, likeliest token first, blanks trimmed.

    Args:
        params: where a text ends and what is left out of it; the rest plays no part.
        prompt_index: of each text, its prompt in the prefix; None: all have the first.
    """
    if backbone.layers.window is not None:
        batch_size = 1  # a window counts columns, so padding inside it would hide text
    answers = [""] * len(texts)
    for indexes in by_length(texts, batch_size):
        prompts = prompt_index and [prompt_index[i] for i in indexes]
        batch = collate([texts[i] for i in indexes], backbone.device, prompts)
        written = yield from _decode(backbone, prefix, batch, params.max_tokens, backbone.end_ids(params))
        for i, token_ids in zip(indexes, written, strict=True):
            answers[i] = write_text(backbone.tokenizer, texts[i].text_ids, token_ids, params).strip()
    return answers


def _decode(
    backbone: Backbone, prefix: PromptPrefix, texts: PaddedBatch, max_new_tokens: int, end_ids: Sequence[int]
) -> Slices[list[list[int]]]:
    """Ids per row, without the one that ends it. Padding stays in the cache, hidden by the mask."""
    device, num_rows = backbone.device, texts.num_rows
    cache = prefix.cache_for(texts.prompt_index)
    mask = torch.cat([prefix.is_real_for(texts.prompt_index), texts.is_real], dim=1)
    starts = prefix.lengths_for(texts.prompt_index)
    columns = torch.arange(texts.token_ids.shape[1], device=device).expand(num_rows, -1)
    step_ids, positions = texts.token_ids, starts + columns
    asked: torch.Tensor = (texts.row_lens - 1)[:, None]
    ends = torch.tensor(end_ids, dtype=torch.int64, device=device)
    is_done = torch.zeros(num_rows, dtype=torch.bool, device=device)
    written = []
    for step in range(max_new_tokens):
        output = backbone.forward(
            cache,
            inputs_embeds=backbone.embed(step_ids),
            attention_mask=mask,
            position_ids=positions,
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
