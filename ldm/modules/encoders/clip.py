"""The text transformer of CLIP (Radford et al. 2021, section 2.4) under the names that SD checkpoints use.

    token ids (B,L) -> embeddings -> N pre-norm blocks, causal attention -> final layer norm -> (B,L,D)

Plain torch, so that no library's renaming reaches the file format. The output is the last hidden state after the final
layer norm, one row a token: what SD v1 attends to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Dict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import ConfigError


def quick_gelu(x: Tensor) -> Tensor:
    """GELU as the logistic curve that CLIP was trained with (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class TextDimensions:
    """The size of a text transformer. The defaults are ViT-L/14's, which SD v1 conditions on (123.06 M parameters)."""

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    context: int = 77
    activation: str = "quick_gelu"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of the text encoder must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ConfigError(f"width of the text encoder must be a multiple of heads={self.heads}, got {self.width}")
        if self.activation not in ACTIVATIONS:
            known = " or ".join(sorted(ACTIVATIONS))
            raise ConfigError(f"activation of the text encoder must be {known}, got {self.activation!r}")


class Embeddings(nn.Module):
    """Token plus position. Positions are always 0..L-1; `position_ids` is kept because the files hold it."""

    def __init__(self, dimensions: TextDimensions) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(dimensions.vocab_size, dimensions.width)
        self.position_embedding = nn.Embedding(dimensions.context, dimensions.width)
        self.register_buffer("position_ids", torch.arange(dimensions.context).unsqueeze(0))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,L) int64 -> (B,L,D)."""
        embedded: Tensor = self.token_embedding(tokens)
        return embedded + self.position_embedding.weight[: tokens.shape[1]]


class CausalSelfAttention(nn.Module):
    """Each token attends to itself and to those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B,L,D) -> (B,L,D)."""
        q, k, v = (self._split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        length = x.shape[1]
        future = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + future
        mixed: Tensor = self.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(x.shape))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class MLP(nn.Module):
    """Widen four times, bend, narrow."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B,L,D) -> (B,L,D)."""
        narrowed: Tensor = self.fc2(self.activation(self.fc1(x)))
        return narrowed


class Block(nn.Module):
    """One pre-norm residual layer."""

    def __init__(self, dimensions: TextDimensions) -> None:
        super().__init__()
        self.self_attn = CausalSelfAttention(dimensions.width, dimensions.heads)
        self.layer_norm1 = nn.LayerNorm(dimensions.width)
        self.mlp = MLP(dimensions.width, dimensions.activation)
        self.layer_norm2 = nn.LayerNorm(dimensions.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B,L,D) -> (B,L,D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        residual: Tensor = self.mlp(self.layer_norm2(x))
        return x + residual


class Encoder(nn.Module):
    """The stack of layers; a module of its own because the files name it."""

    def __init__(self, dimensions: TextDimensions) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(dimensions) for _ in range(dimensions.layers)])

    def forward(self, x: Tensor) -> Tensor:
        """(B,L,D) -> (B,L,D)."""
        for layer in self.layers:
            x = layer(x)
        return x


class TextTransformer(nn.Module):
    """Embeddings, layers, final norm: everything under `text_model.` in a file."""

    def __init__(self, dimensions: TextDimensions) -> None:
        super().__init__()
        self.embeddings = Embeddings(dimensions)
        self.encoder = Encoder(dimensions)
        self.final_layer_norm = nn.LayerNorm(dimensions.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,L) int64 -> (B,L,D)."""
        hidden: Tensor = self.final_layer_norm(self.encoder(self.embeddings(tokens)))
        return hidden


class CLIPTextModel(nn.Module):
    """A CLIP text transformer whose state dict begins with `text_model.`, ready to be trained or to be loaded into."""

    def __init__(self, dimensions: TextDimensions) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.text_model = TextTransformer(dimensions)
        initialise(self.text_model, dimensions)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B,L) int64, L at most `context` -> last hidden state (B,L,D) after the final norm."""
        hidden: Tensor = self.text_model(tokens)
        return hidden


def initialise(model: TextTransformer, dimensions: TextDimensions) -> None:
    """Draw weights fit for training from scratch; on the meta device this costs nothing.

    Embeddings as in CLIP (std 0.02 for tokens, 0.01 for positions); matrices keep the variance of their input; the two
    that write into the residual stream are scaled by 1 / sqrt(2 N) (GPT-2, Radford et al. 2019, section 2.3).
    """
    nn.init.normal_(model.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(model.embeddings.position_embedding.weight, std=0.01)
    into_residual = ("out_proj.weight", "fc2.weight")
    for name, parameter in model.encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            std = dimensions.width**-0.5 / math.sqrt(2 * dimensions.layers if name.endswith(into_residual) else 1)
            nn.init.normal_(parameter, std=std)
