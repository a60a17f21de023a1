"""A running mean of the weights, kept while training and sampled with afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Dict, Iterator

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Shadow weights under the names a full SD v1 checkpoint stores them by: the parameter's name without its dots.

    The decay starts low and rises to its value, so that the first steps are soon forgotten.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        super().__init__()
        self.names: Dict[str, str] = {}
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int32))
        for name, parameter in model.named_parameters():
            self.names[name] = name.replace(".", "")
            self.register_buffer(self.names[name], parameter.detach().clone())

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move the shadows towards the model's weights."""
        self.num_updates += 1
        count = int(self.num_updates)
        decay = min(float(self.decay), (1 + count) / (10 + count))
        shadows = dict(self.named_buffers())
        for name, parameter in model.named_parameters():
            shadows[self.names[name]].lerp_(parameter.detach().to(shadows[self.names[name]].dtype), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give the model the shadows."""
        shadows = dict(self.named_buffers())
        for name, parameter in model.named_parameters():
            parameter.copy_(shadows[self.names[name]])

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """The model has the shadows inside the block and its own weights again after it."""
        own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(own[name])
