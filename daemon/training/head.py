"""Log-probabilities of tokens from hidden states: logits at the wanted positions only, in chunks.

Shapes: `K` positions, `W` hidden width, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from daemon.domain.errors import ModelError
from daemon.training.recompute import recomputed


class Head:
    """The way from a causal model's last hidden state to its logits."""

    def __init__(self, model: Any) -> None:
        """Use the model's own output embeddings, and whatever its family does to the logits after them.

        Raises:
            ModelError: the result is not what the whole model gives.
        """
        self._projection = model.get_output_embeddings()
        config = model.config.get_text_config(decoder=True)
        self._factor = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        self._softcap = getattr(config, "final_logit_softcapping", None)
        self._check(model)

    def logits(self, hidden_KW: Tensor) -> Tensor:
        """Logits (K, V), in the model's dtype."""
        logits_KV: Tensor = self._projection(hidden_KW)
        if self._factor != 1.0:
            logits_KV = logits_KV * self._factor
        if self._softcap:
            logits_KV = torch.tanh(logits_KV / self._softcap) * self._softcap
        return logits_KV

    def logprobs(self, hidden_KW: Tensor, targets_K: Tensor, chunk: int) -> Tensor:
        """Log-probability of each target, (K,), in float32 or the model's dtype if that is wider.

        Args:
            chunk: positions whose logits exist at once. With more positions than that, the backward pass computes the
                logits of each chunk again instead of keeping them.
        """
        if len(targets_K) <= chunk:
            return self._chunk(hidden_KW, targets_K)
        chunks = zip(torch.split(hidden_KW, chunk), torch.split(targets_K, chunk), strict=True)
        score = recomputed(self._chunk)
        return torch.cat([score(hidden, targets) for hidden, targets in chunks])

    def _chunk(self, hidden_KW: Tensor, targets_K: Tensor) -> Tensor:
        logits_KV = self.logits(hidden_KW)
        if logits_KV.dtype in (torch.bfloat16, torch.float16):
            logits_KV = logits_KV.float()
        return -F.cross_entropy(logits_KV, targets_K, reduction="none")

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        ids = torch.arange(3, device=model.device).unsqueeze(0)
        expected = model(input_ids=ids, use_cache=False).logits[0]
        found = self.logits(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
        same = expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-2, atol=1e-3, equal_nan=True)
        if not same:
            raise ModelError(
                f"{type(model).__name__} does something to its logits that the trainer does not know; "
                "use a model with an ordinary language-model head"
            )
