"""Tests of what a task prompt's values may be."""

import subprocess
import sys

import pytest
import torch

from app.errors import InvalidInput
from app.task_prompt import TaskPrompt, is_finite

WEIGH = """
import os, torch
from app.task_prompt import TaskPrompt, is_finite

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def load():
    prompt = TaskPrompt.from_embeddings(torch.frombuffer(bytearray(115_200), dtype=torch.float32).view(50, 576), "one")
    assert is_finite(prompt.rows, torch.bfloat16)
    return prompt

load()
before = resident_bytes()
kept = [load() for _ in range(300)]
print((resident_bytes() - before) / len(kept))
"""
ROWS = torch.tensor([[1.0, -2.0], [65_504.0, 0.0]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_a_value_that_is_no_number_is_refused_wherever_it_stands(value: float, place: int) -> None:
    rows = ROWS.clone()
    rows.view(-1)[place] = value
    assert not is_finite(rows)
    with pytest.raises(InvalidInput, match="finite"):
        TaskPrompt.from_embeddings(rows, "backbone")


@pytest.mark.parametrize("sign", [1, -1])
def test_what_overflows_depends_on_the_dtype(sign: int) -> None:
    assert is_finite(sign * ROWS, torch.float16)
    assert not is_finite(sign * (ROWS + 16), torch.float16)
    assert is_finite(sign * (ROWS + 16), torch.bfloat16)
    assert not is_finite(torch.full((1, 1), sign * 3.4e38), torch.bfloat16)


def test_values_are_a_copy_in_float32_and_in_order() -> None:
    rows = torch.arange(6, dtype=torch.float64).view(2, 3).T
    prompt = TaskPrompt.from_embeddings(rows, "backbone")
    rows += 1
    assert prompt.rows is not None
    assert prompt.rows.is_contiguous()
    assert prompt.rows.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_prompts_in_memory_leave_no_holes_of_their_size() -> None:
    done = subprocess.run([sys.executable, "-c", WEIGH], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 1.1 * 115_200
