"""What is asked of a contender, made from a seed and thus repeatable, and what it did with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from app.model.backbone import Backbone
from app.task_prompt import TaskPrompt


@dataclass(frozen=True)
class Request:
    """One request: greedy, `Workload.num_new_tokens` long, end-of-sequence ignored.

    Attributes:
        task: index into `Workload.prompts`; None sends no prompt.
        token_ids: the text.
    """

    task: int | None
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Requests that are all there at t = 0, in this order.

    Attributes:
        labels: ids of one token each; if there are any, a request is answered with the likeliest, which counts as its
            one new token.
        label_texts: the labels as text.
    """

    requests: tuple[Request, ...]
    prompts: tuple[TaskPrompt, ...]
    num_new_tokens: int
    labels: tuple[int, ...] = ()
    label_texts: tuple[str, ...] = ()

    @property
    def num_generated_tokens(self) -> int:
        return len(self.requests) * self.num_new_tokens

    @property
    def num_input_tokens(self) -> int:
        """Tokens of the texts, prompts not counted."""
        return sum(len(request.token_ids) for request in self.requests)

    def prompt(self, request: Request) -> TaskPrompt | None:
        return None if request.task is None else self.prompts[request.task]

    def every(self, stride: int) -> Workload:
        """Every `stride`-th request."""
        return replace(self, requests=self.requests[::stride])

    def each(self, change: Callable[[Request], Request]) -> Workload:
        return replace(self, requests=tuple(map(change, self.requests)))

    def rotated(self, number: int) -> Workload:
        """The same requests, their texts rotated by `number` tokens, so that no prefix cache knows them."""
        return self.each(
            lambda request: replace(request, token_ids=request.token_ids[number:] + request.token_ids[:number])
        )

    def one_token_each(self) -> Workload:
        """The same tasks with texts of one token and one token to generate: enough to compute every prefix."""
        short = self.each(lambda request: replace(request, token_ids=request.token_ids[:1]))
        return replace(short, num_new_tokens=1)

    def with_task(self, task: int | None) -> Workload:
        """The same texts, all of one task, or without prompts."""
        return self.each(lambda request: replace(request, task=task))

    def with_private_prompts(self, salt: str) -> Workload:
        """Each request with a prompt of the same values under a digest of its own, so that no cache knows it."""
        prompts = [self.prompts[request.task or 0] for request in self.requests]
        renamed = tuple(_renamed(prompt, f"{salt}/{index}") for index, prompt in enumerate(prompts))
        requests = tuple(replace(request, task=index) for index, request in enumerate(self.requests))
        return replace(self, requests=requests, prompts=renamed)

    def with_cold_prompts(self, salt: str) -> Workload:
        """The same tasks under digests no cache knows yet: what the first requests after a start meet."""
        return replace(self, prompts=tuple(_renamed(prompt, salt) for prompt in self.prompts))


@dataclass(frozen=True)
class Outcome:
    """What a contender did with a workload; sequences are in the order of its requests.

    Attributes:
        first_token_s: seconds from t = 0 to each request's first token.
        num_tokens: generated for each request.
        tokens: their ids; empty if the contender does not tell them.
        num_cached_tokens: prefix tokens that were found computed, over all requests.
        elsewhere_s: CPU seconds it took in another process.
    """

    first_token_s: tuple[float, ...]
    num_tokens: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...] = ()
    num_cached_tokens: int = 0
    elsewhere_s: float = 0.0

    @classmethod
    def of(cls, tokens: tuple[tuple[int, ...], ...], first_token_s: tuple[float, ...], **more: Any) -> Outcome:
        """Of a contender that tells its tokens."""
        return cls(first_token_s, tuple(map(len, tokens)), tokens, **more)


@dataclass(frozen=True)
class Dimensions:
    """The size of a workload; the default is the mixed load that most benchmarks share."""

    num_requests: int = 64
    num_tasks: int = 8
    num_virtual_tokens: int = 50
    min_input_tokens: int = 20
    max_input_tokens: int = 60
    num_new_tokens: int = 32


MIXED = Dimensions()


def mixed_tasks(dimensions: Dimensions, prompts: tuple[TaskPrompt, ...], vocab_size: int) -> Workload:
    """Texts of random length and content; tasks take turns, so that a server that switches must switch every time."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    requests = []
    for index in range(dimensions.num_requests):
        (length,) = draw(dimensions.min_input_tokens, dimensions.max_input_tokens + 1, 1)
        requests.append(Request(index % len(prompts), tuple(draw(0, vocab_size, length))))
    return Workload(tuple(requests), prompts, dimensions.num_new_tokens)


def random_prompts(backbone: Backbone, dimensions: Dimensions) -> tuple[TaskPrompt, ...]:
    """Distinct prompts of kind `embeddings`, with rows about as long as the embeddings of tokens."""
    some = backbone.embed(torch.arange(min(1024, backbone.vocab_size), device=backbone.device))
    scale = float(some.float().norm(dim=-1).mean()) / backbone.hidden_size**0.5
    generator = torch.Generator().manual_seed(0)
    shape = dimensions.num_virtual_tokens, backbone.hidden_size
    return tuple(
        TaskPrompt.from_embeddings(torch.randn(shape, generator=generator) * scale, backbone.fingerprint)
        for _ in range(dimensions.num_tasks)
    )


def _renamed(prompt: TaskPrompt, salt: str) -> TaskPrompt:
    return replace(prompt, digest=hashlib.sha256(f"{prompt.digest}/{salt}".encode()).hexdigest())
