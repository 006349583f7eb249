"""Digests of named tensors: equal digests, equal bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from blake3 import blake3
from torch import Tensor


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """BLAKE3 (hex) over names, dtypes, shapes and bytes, in name order; where the tensors live does not matter."""
    hasher = blake3(max_threads=blake3.AUTO)
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        hasher.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
