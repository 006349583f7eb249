"""Most memory in use during a piece of work."""

from __future__ import annotations

from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Peak of this process's resident memory, or of the GPU's allocations, since it was made."""

    def __init__(self, device: str) -> None:
        """Forget the peaks so far, for everybody in this process."""
        self._on_gpu = device.startswith("cuda")
        self._reset = True
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _CLEAR.write_text("5")  # proc(5): resets VmHWM
        except OSError:
            self._reset = False

    def read(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated()
        if not self._reset:
            return None
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
