"""Attention over the places of a feature map and over the words of a prompt.

Shapes: B batch, N query places, M key places (N, or L words), C channels, D text width; heads split C.
Module names are the names of the tensors in an SD v1 checkpoint.
"""

from __future__ import annotations

import itertools
from typing import Callable, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.modules.diffusionmodules.util import add_into, rows_like
from ldm.modules.processor import AMX_BF16, BF16_FLAGS, processor_flags
from ldm.modules.recall import Recall
from ldm.modules.token_merging import TokenMerging

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

# Scores of one slice, in elements: bounds the memory of attention where torch has no fused kernel.
SLICE_ELEMENTS = 2**26
# Query places of one slice of one head, on a CPU: their scores stay in its caches. Of fewer keys than twice as many,
# all heads at once are quicker.
ROWS = 512
# Numbers in a register: values of 40 are summed in two thirds of the time if they are taken for 48.
LANES = 16

# Types of device, and dtypes, at which torch's fused kernel was found to write the scores of all places into memory.
UNSLICED: Set[Tuple[str, torch.dtype]] = set()

_HAS_FUSED_KERNEL = hasattr(functional, "scaled_dot_product_attention")


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q (B,heads,N,d), k and v (B,heads,M,d) (Vaswani et al. 2017, eq. 1)."""
    return attention_kernel(q.device.type, q.dtype, trains=q.requires_grad)(q, k, v)


def attention_kernel(device: str, dtype: torch.dtype, *, trains: bool) -> Kernel:
    """The quickest way there is, for a type of device ('cpu' or a card) and the dtype of q, k and v.

    torch's fused kernel is slower backwards on a CPU than plain products, and in bfloat16 gains nothing over float32
    unless the CPU has matrix units for it. Without any instructions for bfloat16 an old torch sums products in it, too,
    in which a sum of a thousand weights does not fit.
    """
    cpu_bf16 = device == "cpu" and dtype is torch.bfloat16 and not trains
    cpu_trains = device == "cpu" and trains
    fused = _HAS_FUSED_KERNEL and (device, dtype) not in UNSLICED
    if fused and not cpu_trains and not (cpu_bf16 and AMX_BF16 not in processor_flags()):
        return functional.scaled_dot_product_attention
    return attend_by_head if cpu_bf16 and BF16_FLAGS & processor_flags() else attend_in_slices


def attend_in_slices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same sum with plain operators, a slice of the query places at a time."""
    batch, heads, _, width = q.shape
    rows = max(1, SLICE_ELEMENTS // (batch * heads * k.shape[2]))
    keys = k.transpose(-1, -2) * width**-0.5
    return torch.cat([(part @ keys).softmax(dim=-1) @ v for part in q.split(rows, dim=2)], dim=2)


def attend_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same sum, a slice of the query places of one head at a time; for what is not trained.

    The weights are exp(q k^T / sqrt(d)), written over the scores while these are in the processor's caches; a column of
    ones beside the values has the product sum them, too, and its results are divided by that sum. Softmax subtracts
    the largest score first, which is one more reading of them all, and only needed where sums leave the dtype's range:
    such a head is computed again with it.
    """
    batch, heads, places, width = q.shape
    if k.shape[2] < 2 * ROWS:
        return attend_in_slices(q, k, v)
    out = q.new_empty(batch, places, heads, v.shape[3]).transpose(1, 2)  # as the next layer reads it
    scores = q.new_empty(min(places, ROWS), k.shape[2])
    values = v.new_zeros(v.shape[2], (v.shape[3] // LANES + 1) * LANES)
    values[:, v.shape[3]] = 1
    sums = v.new_empty(places, values.shape[1])
    of_values, of_weights = sums[:, : v.shape[3]], sums[:, v.shape[3], None]
    for picture, head in itertools.product(range(batch), range(heads)):
        keys = k[picture, head].t() * width**-0.5
        values[:, : v.shape[3]] = v[picture, head]
        for rows, into in zip(q[picture, head].split(ROWS), sums.split(ROWS)):
            torch.mm(torch.mm(rows, keys, out=scores[: len(rows)]).exp_(), values, out=into)
        if _are_in_range(of_weights):
            torch.div(of_values, of_weights, out=out[picture, head])
        else:
            of_head = (slice(picture, picture + 1), slice(head, head + 1))
            out[of_head] = attend_in_slices(q[of_head], k[of_head], v[of_head])
    return out


def _are_in_range(sums: Tensor) -> bool:
    """Whether sums of exponentials lie where neither they nor the large ones among their terms were cut off."""
    furthest = torch.finfo(sums.dtype).max ** 0.5  # leaves the other half of the exponents to the values
    return 1 / furthest < float(sums.amin()) and float(sums.amax()) < furthest


class GEGLU(nn.Module):
    """Half of a projection gates the other through GELU (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    """(B,N,C) -> (B,N,C) through four times the width."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Dropout(dropout), nn.Linear(dim * 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CrossAttention(nn.Module):
    """Queries from x (B,N,C); keys and values from context (B,M,D), or from x itself where there is none."""

    def __init__(
        self, query_dim: int, *, context_dim: Optional[int] = None, heads: int, dim_head: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Optional[Tensor] = None, recall: Optional[Recall] = None) -> Tensor:
        q = self._split(self.to_q(x))
        if context is None or recall is None:
            k, v = self.keys_and_values(x if context is None else context)
        else:
            k, v = recall.keys_and_values(self, context)
        return self.to_out(attend(q, k, v).transpose(1, 2).flatten(2))

    def keys_and_values(self, context: Tensor) -> Tuple[Tensor, Tensor]:
        """Both (B,heads,M,d) of context (B,M,D)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, x.shape[2] // self.heads)).transpose(1, 2)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention over the words, feed-forward; each on the normalised input, each added to it.

    x (B,N,C) with the words of n texts a row, (n*B,L,D), gives (n*B,N,C).
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, context_dim: Optional[int], dropout: float) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.ff = FeedForward(dim, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim=context_dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        context: Optional[Tensor] = None,
        recall: Optional[Recall] = None,
        merging: Optional[TokenMerging] = None,
    ) -> Tensor:
        x = add_into(self._attend_to_itself(self.norm1(x), merging), x)
        if context is not None:
            x = rows_like(x, context)
        x = add_into(self.attn2(self.norm2(x), context, recall), x)
        return add_into(self.ff(self.norm3(x)), x)

    def _attend_to_itself(self, x: Tensor, merging: Optional[TokenMerging]) -> Tensor:
        if merging is None:
            return self.attn1(x)
        matching = merging.match(x)
        return matching.unmerge(self.attn1(matching.merge(x)))


class SpatialTransformer(nn.Module):
    """A feature map (B,C,h,w) seen as h*w tokens, with the prompt (B,L,D) as context; added to its input.

    Words of n texts a row, (n*B,L,D), make n*B rows of it.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        *,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: Optional[int] = None,
        groups: int = 32,
    ) -> None:
        super().__init__()
        inner = n_heads * d_head
        self.norm = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.proj_in = nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads=n_heads, dim_head=d_head, context_dim=context_dim, dropout=dropout)
            for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Conv2d(inner, in_channels, 1))

    def forward(self, x: Tensor, context: Optional[Tensor] = None, recall: Optional[Recall] = None) -> Tensor:
        height, width = x.shape[2:]
        merging = None if recall is None else recall.merging
        if merging is not None and not merging.suits(height, width):
            merging = None
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context, recall, merging)
        return add_into(self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width))), rows_like(x, tokens))


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all weights zero: a new residual branch that adds nothing until it is trained."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
