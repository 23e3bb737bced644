"""Steps of an engine beside the device's best: decode beside its bandwidth, prefill beside its matrix products."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from app.engine.engine import Engine
from app.model.backbone import Backbone
from app.sampling import SamplingParams
from benchmarks.gpu.correctness import WAYS
from benchmarks.gpu.device import Device
from benchmarks.gpu.models import num_flops_per_token, num_weight_bytes
from benchmarks.gpu.sizes import Sizes
from benchmarks.report import Part, Ratio, Say

BATCH_TO_BOUND = {1: 1.25, 64: 1.4}
"""What a decode step of the large shape may take of its floor."""
BEST = "decode graphs, asynchronous"


def measure_decode(backbone: Backbone, device: Device, sizes: Sizes, say: Say, *, is_bound: bool) -> Part:
    """Milliseconds of a step in which every sequence adds one token.

    The floor is the longer of two times: all weights and the keys and values of all sequences over the bandwidth
    measured in this run, and the products over the rate measured in this run.
    """
    rows: dict[str, dict[str, float]] = {f"batch {size}": {} for size in sizes.decode_batches}
    attention = ""
    for way, fields in WAYS.items():
        engine = Engine(backbone, sizes.config(backbone, **fields))
        attention = engine.model_runner.attend.__name__
        for size in sizes.decode_batches:
            took_s, num_kv_tokens = _decode(engine, device, sizes, size)
            figures = rows[f"batch {size}"]
            figures[f"{way}, ms"] = 1000 * took_s
            figures["floor, ms"] = 1000 * _floor_s(backbone, device, size, num_kv_tokens)
            say(f"{backbone.name}, decode {size}, {way}: {1000 * took_s:.2f} ms")
        del engine
        device.forget()
    ratios = tuple(
        Ratio(
            f"batch {size}: step / floor",
            rows[f"batch {size}"][f"{BEST}, ms"] / rows[f"batch {size}"]["floor, ms"],
            at_most=BATCH_TO_BOUND.get(size) if is_bound else None,
        )
        for size in sizes.decode_batches
    )
    return Part(
        name=f"decode, {backbone.name}",
        question="how far is a decode step from the bytes it must read?",
        setting={"context": sizes.num_context, "attention": attention, "weights_gb": num_weight_bytes(backbone) / 1e9},
        name_to_figures=rows,
        ratios=ratios,
    )


def _decode(engine: Engine, device: Device, sizes: Sizes, size: int) -> tuple[float, float]:
    """(seconds of a step, tokens all sequences see on average), from the moment that all of them decode."""
    params = SamplingParams(temperature=0.0, max_tokens=2 * sizes.num_decode_steps + 8, ignore_eos=True)
    generator = random.Random(size)
    ids = [
        engine.add(_text(generator, engine.backbone, sizes.num_context), params=params, flow=str(i))
        for i in range(size)
    ]
    seen: set[int] = set()
    while len(seen) < size:
        seen |= {sequence_id for sequence_id, _ in engine.step()}
    for _ in range(3):
        engine.step()
    device.settle()
    num_kv_tokens = sum(each.num_tokens for each in engine.scheduler.running) + size * sizes.num_decode_steps / 2
    began_s = time.perf_counter()
    for _ in range(sizes.num_decode_steps):
        engine.step()
    device.settle()
    took_s = (time.perf_counter() - began_s) / sizes.num_decode_steps
    for sequence_id in ids:
        engine.abort(sequence_id)
    while engine.has_unfinished:
        engine.step()
    return took_s, num_kv_tokens


def _floor_s(backbone: Backbone, device: Device, size: int, num_kv_tokens: float) -> float:
    num_weights = num_weight_bytes(backbone)
    num_bytes = num_weights + num_kv_tokens * backbone.kv_shape.num_bytes_per_token(backbone.dtype)
    num_flops = 2 * num_weights / backbone.dtype.itemsize * size
    return max(num_bytes / device.bytes_per_s, num_flops / device.flops_per_s)


def measure_prefill(backbone: Backbone, device: Device, sizes: Sizes, say: Say) -> Part:
    """A step full of texts, beside the time of its layers' products alone at the measured rate."""
    engine = Engine(backbone, sizes.config(backbone))
    generator = random.Random(0)
    num_texts = sizes.num_prefill_tokens // sizes.num_text_tokens
    took_s = device.seconds(_prefill(engine, generator, sizes, num_texts), sizes.num_rounds)
    num_tokens = num_texts * sizes.num_text_tokens
    best_s = num_tokens * num_flops_per_token(backbone) / device.flops_per_s
    say(f"{backbone.name}, prefill of {num_tokens} tokens: {1000 * took_s:.1f} ms")
    return Part(
        name=f"prefill, {backbone.name}",
        question="how far is a prefill step from its matrix products?",
        setting={"texts": num_texts, "tokens_of_each": sizes.num_text_tokens},
        name_to_figures={
            "a step": {"ms": 1000 * took_s, "products alone, ms": 1000 * best_s, "tokens/s": num_tokens / took_s}
        },
        ratios=(Ratio("step / its products alone", took_s / best_s),),
    )


def _prefill(engine: Engine, generator: random.Random, sizes: Sizes, num_texts: int) -> Callable[[], None]:
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)

    def prefill() -> None:
        for _ in range(num_texts):
            engine.add(_text(generator, engine.backbone, sizes.num_text_tokens), params=params)
        while engine.has_unfinished:
            engine.step()

    return prefill


def _text(generator: random.Random, backbone: Backbone, length: int) -> list[int]:
    return [generator.randrange(backbone.vocab_size) for _ in range(length)]
