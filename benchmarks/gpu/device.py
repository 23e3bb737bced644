"""What the device can do at best: the bytes it reads in a second, and the operations of a matrix product."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Device:
    """A CUDA device, or for a rehearsal the CPU.

    Attributes:
        copy_bytes: size of the copied tensor; large beside any cache.
        matrix_size: of the square product.
    """

    place: torch.device
    copy_bytes: int = 2**32
    matrix_size: int = 8192

    @classmethod
    def rehearsal(cls) -> Device:
        return cls(torch.device("cpu"), copy_bytes=2**22, matrix_size=128)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.place) if self.place.type == "cuda" else "CPU (a rehearsal)"

    @property
    def dtype(self) -> torch.dtype:
        """What models are measured in."""
        return torch.bfloat16 if self.place.type == "cuda" else torch.float32

    def settle(self) -> None:
        """Wait until it has done all it was told."""
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)

    def forget(self) -> None:
        """Give memory back that nobody holds any more; an engine and its graphs hold each other."""
        gc.collect()
        if self.place.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], object], num_rounds: int = 5) -> float:
        """The median over the rounds, host and device together; one round more warms up."""
        work()
        found = []
        for _ in range(num_rounds):
            self.settle()
            began_s = time.perf_counter()
            work()
            self.settle()
            found.append(time.perf_counter() - began_s)
        return statistics.median(found)

    @cached_property
    def bytes_per_s(self) -> float:
        """The faster of reading a tensor (a sum) and of reading and writing one (a copy)."""
        source = torch.randn(self.copy_bytes // 4, device=self.place)
        target = torch.empty_like(source)
        copied = 2 * source.nbytes / self.seconds(lambda: target.copy_(source))
        read = source.nbytes / self.seconds(source.sum)
        return max(copied, read)

    @cached_property
    def flops_per_s(self) -> float:
        """Of a product of square matrices of random numbers; on zeros a device can be faster."""
        one, other = (
            torch.randn(self.matrix_size, self.matrix_size, device=self.place).to(self.dtype) for _ in range(2)
        )
        return 2 * self.matrix_size**3 / self.seconds(lambda: one @ other, 10)
