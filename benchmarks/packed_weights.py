"""`python -m benchmarks.packed_weights`: what packed weights are worth to the engine, at batches of 1, 8 and 64.

W1's requests, or every eighth, or one, on random weights of SmolLM2-135M's shape. Two engines on the same backbone, one
with packed weights where they were measured to be faster and one with none, take turns step by step. The last line
printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.model.backbone import DTYPES, Backbone
from app.model.packed_weights import PackedWeights
from benchmarks.machine import Machine
from benchmarks.peers.softswap import SoftswapRun
from benchmarks.rounds import SteppedContender, interleave_steps
from benchmarks.setting import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS
from benchmarks.shapes import SMOLLM2_135M, TINY
from benchmarks.workloads import W1, Workload, mixed_tasks, random_prompts

STRIDE_TO_BATCH = {64: 1, 8: 8, 1: 64}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packed_weights", description=__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model: a rehearsal, no figures")
    options = parser.parse_args(arguments)
    shape = TINY if options.quick else SMOLLM2_135M
    model = shape.build_model().to(DTYPES[options.dtype])
    backbone = Backbone.from_model(model, shape.build_tokenizer(), name=shape.name)
    config = EngineConfig.sized_for(
        backbone,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        kv_cache_bytes=2**29,
        prefix_caching=False,  # repetitions have the same texts, and each must compute them
    )
    machine = Machine.here()
    print(machine)
    print(backbone.packed_weights[1])
    packed, plain = (Engine(backbone, config, packed_weights=weights) for weights in (None, PackedWeights()))
    whole = _workload(backbone)
    batch_to_result = {
        batch: _compare(packed, plain, whole.every(stride), options.repetitions)
        for stride, batch in STRIDE_TO_BATCH.items()
    }
    print(
        json.dumps({"dtype": options.dtype, "shape": shape.name, "batches": batch_to_result, "machine": str(machine)})
    )


def _workload(backbone: Backbone) -> Workload:
    prompts = random_prompts(
        W1.num_tasks, W1.num_virtual_tokens, backbone.hidden_size, backbone.fingerprint, row_norm=1.0
    )
    return mixed_tasks(W1, prompts, backbone.vocab_size)


def _compare(packed: Engine, plain: Engine, workload: Workload, repetitions: int) -> dict[str, float]:
    found = interleave_steps(
        [
            SteppedContender("packed", lambda _: workload, lambda load: SoftswapRun(packed, load)),
            SteppedContender("plain", lambda _: workload, lambda load: SoftswapRun(plain, load)),
        ],
        repetitions,
        lambda line: None,
    )
    fast, slow = found["packed"], found["plain"]
    ratios = [after / before for after, before in zip(fast.tokens_per_s, slow.tokens_per_s, strict=True)]
    same = [a == b for a, b in zip(fast.first_tokens, slow.first_tokens, strict=True)]
    result = {
        "packed_tokens_per_s": round(fast.median_tokens_per_s, 1),
        "plain_tokens_per_s": round(slow.median_tokens_per_s, 1),
        "ratio": round(statistics.median(ratios), 3),
        "same_answers": sum(same) / len(same),
    }
    print(f"{len(workload.requests):3} requests: {result}, ratios {[round(ratio, 2) for ratio in ratios]}", flush=True)
    return result


if __name__ == "__main__":
    main()
