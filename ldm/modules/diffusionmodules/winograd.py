"""Convolutions of 3x3 by minimal filtering, which needs a fraction of the products (Lavin and Gray 2015).

A tile of m x m results is computed from the n x n numbers that it looks at, n = m + 2, as

    Y = A^T [(G g G^T) * (B^T d B)] A                                       (arXiv:1509.09308, eq. 8)

where * multiplies place by place: n^2 products in place of 9 m^2, 16 of 36 for m = 2 and 36 of 144 for m = 4. Over
channels each of the n^2 places becomes a matrix product of its own, beside which A and B take little time. They add and
subtract numbers that are larger than what comes out, so this is for float32.
"""

from __future__ import annotations

import functools
import math
from typing import Callable, Iterator, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Product = Callable[[Tensor], Tensor]

# Where the polynomials behind it are evaluated, by m, and at infinity. For m = 4 these round a third as much as the
# usual 0, 1, -1, 2, -2; that they take multiplications and those additions alone costs nothing in a matrix product.
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}
# Numbers of the tiles that are worked on at once: few enough for the processor's caches.
AT_ONCE = 2**22


class Matrices(NamedTuple):
    """Of a tile's rows, and of its columns: a (m,n), g (n,3), b (n,n)."""

    a: Tensor
    g: Tensor
    b: Tensor


def transformed(taps: Tensor, m: int) -> Iterator[Tensor]:
    """G g G^T of weights g for tiles of m x m results: (C',C) for each of the n^2 places, row by row.

    taps (3,3,C',C): the weights. Each result is good until the next, which is written over it: for a large model,
    memory new from the system would take longer than the sums.
    """
    g = matrices(m, taps.dtype).g.tolist()
    of_row, of_place = torch.empty_like(taps[0]), torch.empty_like(taps[0, 0])
    for of_rows in g:
        _sum(taps, of_rows, into=of_row)
        for of_columns in g:
            yield _sum(of_row, of_columns, into=of_place)


def _sum(parts: Tensor, factors: Sequence[float], into: Tensor) -> Tensor:
    """sum_i factors_i parts_i."""
    torch.mul(parts[0], factors[0], out=into)
    for part, factor in zip(parts[1:], factors[1:]):
        if factor:
            into.add_(part, alpha=factor)
    return into


def convolve(x: Tensor, products: Sequence[Product], outputs: int, bias: Optional[Tensor]) -> Tensor:
    """x (B,C,H,W) -> (B,outputs,H,W), channels last: a convolution of 3x3 with a margin of 1, stride 1. No gradients.

    products  for each of the n^2 places, tiles (P,C) -> (P,outputs): by the transformed weights of the place.
    """
    n = math.isqrt(len(products))
    m = n - 2
    a, _, b = matrices(m, x.dtype)
    batch, channels, height, width = x.shape
    high, wide = -(-height // m), -(-width // m)
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + wide * m - width, 1, 1 + high * m - height))
    seen = padded.unfold(1, n, m).unfold(2, n, m).permute(4, 5, 0, 1, 2, 3)  # (n,n,B,high,wide,C), a view
    out = x.new_empty(batch, high, m, wide, m, outputs)
    rows = max(1, AT_ONCE // (n * n * batch * wide * max(channels, outputs)))
    for first in range(0, high, rows):
        tiles = _both_sides(b, seen[:, :, :, first : first + rows].reshape(n, n, -1)).view(n * n, -1, channels)
        multiplied = torch.stack([product(tile) for product, tile in zip(products, tiles)])
        results = _both_sides(a, multiplied.view(n, n, -1)).view(m, m, batch, -1, wide, outputs)
        into = out[:, first : first + rows]
        torch.add(results.permute(2, 3, 0, 4, 1, 5), 0 if bias is None else bias, out=into)
    return out.view(batch, high * m, wide * m, outputs)[:, :height, :width].permute(0, 3, 1, 2)


def _both_sides(matrix: Tensor, tiles: Tensor) -> Tensor:
    """M t M^T of every tile: M (k,n), t (n,n,X), the tiles last -> (k,k,X)."""
    n = tiles.shape[0]
    return torch.matmul(matrix, (matrix @ tiles.view(n, -1)).view(matrix.shape[0], n, -1))


@functools.lru_cache(maxsize=None)
def matrices(m: int, dtype: torch.dtype) -> Matrices:
    """Those of Toom and Cook for the points, transposed (Winograd 1980, chapter V): sum_k g_k d_(i+k) in n products."""
    points = POINTS[m]
    n = len(points) + 1
    a, g, b = np.zeros((m, n)), np.zeros((n, 3)), np.zeros((n, n))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        a[:, i] = point ** np.arange(m)
        g[i] = point ** np.arange(3) / np.prod([point - other for other in others])
        b[i, : n - 1] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    return Matrices(*(torch.from_numpy(each).to(dtype) for each in (a, g, b)))
