"""Values between host and device, without either waiting for the other.

A copy from ordinary memory, or one that may not be deferred, makes the host wait for all that the device has to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Numbers, or rows of them, as a tensor on the device."""
    host = torch.tensor(values, dtype=dtype)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def tensor_to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on the device."""
    return tensor.to(device) if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """Tensors on their way to the host, in the order of what was given to the device."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._arrival: torch.cuda.Event | None = None
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        if device is not None:
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(device))

    def wait(self) -> list[torch.Tensor]:
        """The same tensors on the host; waits for the device's work from before they left, and for none given since."""
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None
        return self._tensors
