"""Fewer tokens for self-attention: places of a map that are alike attend as one (Bolya & Hoffman 2023).

The tokens are parted into destinations, one of every 2x2 places, and sources. The sources that are most like their
nearest destination are averaged into it; after the attention they get a copy of what it got. Which of the four places
is the destination is drawn anew for each timestep, or the pattern would show in the picture, and is the
same for each picture, so that none depends on its batch. Nothing here depends on an order of additions either, which a
card's scatter would.

Shapes: B batch, N tokens, C channels; D destinations, S sources, r of them merged: N = D + S.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional

# Of smaller maps, finding what is alike costs as much as it saves.
LEAST_TOKENS = 1024
# Likenesses that are held at a time.
SLICE_ELEMENTS = 2**26


@dataclass(frozen=True)
class TokenMerging:
    """What is merged in one call of the network: the share `ratio` of the tokens of maps of the latent's own size."""

    ratio: float
    height: int
    width: int
    seed: int

    def suits(self, height: int, width: int) -> bool:
        """Whether maps of this size are merged: the largest alone, where attention costs most."""
        return (height, width) == (self.height, self.width) and height * width >= LEAST_TOKENS

    def match(self, x: Tensor) -> Matching:
        """Which of the tokens x (B,N,C) go together."""
        destinations, sources = parted(self.height, self.width, self.seed, x.device)
        unit = functional.normalize(x, dim=-1)
        likeness, nearest = _nearest(unit[:, sources], unit[:, destinations])
        ranked = torch.sort(likeness, dim=-1, descending=True, stable=True).indices
        merged = min(int(self.ratio * x.shape[1]), len(sources))
        return Matching(destinations, sources, ranked[:, :merged], ranked[:, merged:], nearest)


@dataclass(frozen=True)
class Matching:
    """Destinations (D,) and sources (S,) among the tokens; of the sources `merged` (B,r) and `kept` (B,S-r); and the
    destination that each source is `nearest` (B,S) to.
    """

    destinations: Tensor
    sources: Tensor
    merged: Tensor
    kept: Tensor
    nearest: Tensor

    def merge(self, x: Tensor) -> Tensor:
        """x (B,N,C) -> (B,N-r,C): destinations, each the mean of itself and what is merged into it; the kept."""
        sources, destinations = x[:, self.sources], x[:, self.destinations]
        means = _means(destinations, _rows(sources, self.merged), self.nearest.gather(1, self.merged))
        return torch.cat([means, _rows(sources, self.kept)], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """y (B,N-r,C) -> (B,N,C): every token has what became of the one that it was merged into."""
        destinations, kept = y.split([len(self.destinations), self.kept.shape[1]], dim=1)
        sources = _rows(destinations, self.nearest)
        sources.scatter_(1, self.kept[..., None].expand_as(kept), kept)
        x = y.new_empty(y.shape[0], len(self.destinations) + len(self.sources), y.shape[2])
        x[:, self.destinations] = destinations
        x[:, self.sources] = sources
        return x


@functools.lru_cache(maxsize=4)  # every transformer of a call asks for the same
def parted(height: int, width: int, seed: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Destinations (D,) and sources (S,) of a map's tokens: one of every 2x2 places, which a side that is odd cuts."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    corner = torch.randint(4, (rows, columns), generator=torch.Generator().manual_seed(seed))
    below, beside = torch.div(corner, 2, rounding_mode="floor"), corner % 2  # torch 1.10 warns of //
    down = (2 * torch.arange(rows)[:, None] + below).clamp(max=height - 1)
    across = (2 * torch.arange(columns) + beside).clamp(max=width - 1)
    is_destination = torch.zeros(height * width, dtype=torch.bool)
    is_destination[(down * width + across).flatten()] = True
    return is_destination.nonzero()[:, 0].to(device), (~is_destination).nonzero()[:, 0].to(device)


def _nearest(sources: Tensor, destinations: Tensor) -> Tuple[Tensor, Tensor]:
    """The largest cosine (B,S) of each source with a destination, and which that is; both are unit vectors."""
    rows = max(1, SLICE_ELEMENTS // (destinations.shape[0] * destinations.shape[1]))
    found = [(part @ destinations.transpose(1, 2)).max(dim=-1) for part in sources.split(rows, dim=1)]
    likeness, nearest = zip(*found)
    return torch.cat(likeness, dim=1), torch.cat(nearest, dim=1)


def _means(destinations: Tensor, merged: Tensor, nearest: Tensor) -> Tensor:
    """destinations (B,D,C), each averaged with those of merged (B,r,C) that are `nearest` (B,r) to it.

    A product with zeros and ones: a scatter adds in any order on a card, and the last bits of pictures would differ.
    """
    rows = max(1, SLICE_ELEMENTS // max(1, merged.shape[0] * merged.shape[1]))
    means = []
    for first, part in zip(range(0, destinations.shape[1], rows), destinations.split(rows, dim=1)):
        numbers = torch.arange(first, first + part.shape[1], device=part.device)
        belongs = nearest[:, None, :] == numbers[:, None]
        share = (1 / (1 + belongs.sum(dim=-1, keepdim=True))).to(part.dtype)
        means.append(share * part + (belongs * share) @ merged)
    return torch.cat(means, dim=1)


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """x (B,N,C) at places (B,M) -> (B,M,C)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
