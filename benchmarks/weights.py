"""Put a model back to its folder's weights. Imported in worker processes only; needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


@torch.no_grad()
def copy_weights(model_dir: Path, parameters: Mapping[str, Tensor]) -> None:
    """Overwrite `parameters` in place with the folder's, by name."""
    stored: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    for name, parameter in stored.named_parameters():
        parameters[name].copy_(parameter)
