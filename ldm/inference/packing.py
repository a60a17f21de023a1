"""Layers whose weights lie as the CPU's kernels compute on them, packed once instead of at every call.

torch's CPU builds compute with oneDNN, which works on weights in blocks of its own. The public operators are given
plain ones: `conv2d` repacks them in every call, which on the small maps of a U-Net costs several times the arithmetic,
and float32's `linear` goes to another library, half as fast on some processors. The operators that take packed weights
are used only where they have been tried and gave the right numbers, and everything works without them.
"""

from __future__ import annotations

import abc
import functools
import logging
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type, cast

import torch
from torch import Tensor, nn

from ldm.errors import first_line
from ldm.inference.convolving import CHANNELS_LAST, TAPS_FIRST, USUAL, Blocks, Filtered, Place, Product, Way
from ldm.inference.onednn import GELU_BEHIND, linear, linear_weight
from ldm.inference.runtime import without_init
from ldm.inference.scratch import Scratch, freed
from ldm.modules.attention import GEGLU
from ldm.modules.diffusionmodules.doubling import DoublingConv2d, interleaved, phase_weights, repeated

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)
# In float32 the packed operator starts 30 us later than `linear`, which a matrix of fewer weights cannot make good.
LEAST_WEIGHTS_IN_FLOAT32 = 2**16


class Packed(nn.Module, abc.ABC):
    """A layer whose weight is packed when it is first used, and until it is first asked for not even converted."""

    def __init__(self, layer: Any, scratch: Scratch) -> None:
        """Takes the weight of `layer` away, to compute with it in the dtype of `scratch`."""
        super().__init__()
        self.bias = layer.bias
        self._dtype = scratch.dtype
        self._scratch: Optional[Scratch] = scratch  # None once it is packed
        self._given: Optional[Tensor] = layer.weight.detach()  # None once it is packed
        self._layers: List[Any] = [layer]  # in a list, which hides it from nn.Module
        layer.weight = None  # what it is without parameters

    def plain_weight(self) -> Tensor:
        """The weight in the dtype that it is computed with, bit for bit."""
        return self._kept_weight().to(self._dtype)

    @property
    def weight(self) -> Tensor:
        """As the layer that it was made of has it, for those who read it from there: made anew each time."""
        return self.plain_weight()

    def unpacked(self) -> nn.Module:
        """The layer that this was made of, with its weight."""
        holder, *_ = self._layers
        holder.weight = nn.Parameter(self.plain_weight(), requires_grad=False)
        return cast(nn.Module, self._layers[-1])

    def _to_pack(self, order: Optional[Sequence[int]] = None) -> Tensor:
        """The weight, contiguous with its dimensions in this order; it may not be there any more with the next call."""
        return self._held(self._kept_weight(), order)

    def _held(self, weight: Tensor, order: Optional[Sequence[int]]) -> Tensor:
        scratch = self._scratch or Scratch(self._dtype)
        return scratch.hold(weight if order is None else weight.permute(*order))

    def _kept_weight(self) -> Tensor:
        """The weight as it was given, or else taken out of what it was packed into."""
        return self._packed_weight() if self._given is None else self._given

    def _let_go(self, *packed: Tensor) -> None:
        """What was given is not needed any more, now that these are packed."""
        self._given = self._scratch = None
        for weight in packed:
            freed.add(weight)

    @abc.abstractmethod
    def _packed_weight(self) -> Tensor:
        """The weight, taken out of what it was packed into."""


class PackedLinear(Packed):
    """nn.Linear: x (...,in) -> x W^T + b (...,out)."""

    def __init__(self, layer: nn.Linear, scratch: Scratch) -> None:
        super().__init__(layer, scratch)
        self._weight: Optional[Tensor] = None

    def forward(self, x: Tensor) -> Tensor:
        if self._weight is None:
            self._weight = linear_weight(self._to_pack())
            self._let_go(self._weight)
        return linear(x, self._weight, self.bias)

    def _packed_weight(self) -> Tensor:
        assert self._weight is not None
        plain: Tensor = self._weight.to_dense()
        return plain


class PackedGEGLU(Packed):
    """GEGLU: x (...,in) -> (...,out). As two products, whose results lie in one piece each, GELU applied within one."""

    def __init__(self, layer: GEGLU, scratch: Scratch) -> None:
        super().__init__(layer.proj, scratch)
        self._layers.append(layer)  # whose part the projection is
        self._halves: Optional[Tuple[Tensor, Tensor]] = None

    def forward(self, x: Tensor) -> Tensor:
        if self._halves is None:
            value, gate = (linear_weight(half) for half in self._to_pack().chunk(2))
            self._halves = value, gate
            self._let_go(value, gate)
        (value, gate), (of_value, of_gate) = self._halves, self.bias.chunk(2)
        return linear(x, value, of_value).mul_(linear(x, gate, of_gate, GELU_BEHIND))

    def _packed_weight(self) -> Tensor:
        assert self._halves is not None
        return torch.cat([half.to_dense() for half in self._halves])


class PackedConv2d(Packed):
    """nn.Conv2d: (B,C,h,w) -> (B,C',h',w'), channels last. Its weights suit one size of map, the last that it saw."""

    def __init__(self, layer: nn.Conv2d, scratch: Scratch) -> None:
        shape = layer.weight.shape
        super().__init__(layer, scratch)
        self._place = Place(shape, layer.padding, layer.stride, layer.dilation, layer.groups)
        self._way: Optional[Way] = None
        self._suits: Optional[torch.Size] = None

    def forward(self, x: Tensor) -> Tensor:
        if self._way is None or x.shape[2:] != self._suits:
            self._way = self._way_for(x.shape[2:], len(x))
            self._suits = x.shape[2:]
            self._let_go()
        return self._way(x, self.bias)

    def is_filtered(self, size: Sequence[int]) -> bool:
        """Whether maps of that size (h,w) are convolved by minimal filtering."""
        return bool(self._place.tile(size, self._dtype))

    def _way_for(self, size: torch.Size, batch: int) -> Way:
        tile = self._place.tile(size, self._dtype)
        if tile:
            kept = self._kept_weight()
            return Filtered(kept, self._held(kept, TAPS_FIRST), tile)
        weight = self._to_pack(CHANNELS_LAST)
        freed.add(weight)
        is_product = self._place.is_product(size, self._dtype)
        return Product(weight, self._place) if is_product else Blocks(weight, self._place, size, batch)

    def _packed_weight(self) -> Tensor:
        assert self._way is not None
        return self._way.plain_weight()


class PackedDoublingConv2d(PackedConv2d):
    """DoublingConv2d of 3x3: (B,C,h,w) -> (B,C',2h,2w), channels last, in less than half of the products."""

    def __init__(self, layer: DoublingConv2d, scratch: Scratch) -> None:
        super().__init__(layer, scratch)
        self._phases: Optional[PackedConv2d] = None

    def forward(self, x: Tensor, size: Optional[Sequence[int]] = None) -> Tensor:
        doubled = [2 * side for side in x.shape[2:]]
        odd = size is not None and list(size) != doubled
        if odd or self._place.is_product(x.shape[2:], self._dtype) or self.is_filtered(doubled):
            return super().forward(repeated(x, size))
        if self._phases is None:
            self._phases = self._of_phases()
        return interleaved(self._phases(x))

    def _of_phases(self) -> PackedConv2d:
        scratch, self._scratch = self._scratch or Scratch(self._dtype), None
        self._given = self.plain_weight()  # which cannot be had back from the phases' weights
        weight = phase_weights(self._given)
        with without_init():
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 2, padding=1, bias=self.bias is not None)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.repeat(4), requires_grad=False)
        return PackedConv2d(layer, scratch)


KINDS: Dict[Type[nn.Module], Any] = {
    GEGLU: PackedGEGLU,
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    DoublingConv2d: PackedDoublingConv2d,
}


def pack(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace the layers of KINDS, in a model that is not trained, by packed ones of that dtype; how many.

    Their weights may still be of another; everything else in the model is of that dtype.
    """

    def pack_with(scratch: Scratch) -> Any:
        return lambda layer: KINDS[type(layer)](layer, scratch) if can_be_packed(layer, dtype) else None

    # A scratch for each part: layers that are never used, as a first stage's encoder, must not hold the U-Net's.
    parts = [part for part in model.children() if type(part) not in KINDS]
    return sum(_replace(part, pack_with(Scratch(dtype))) for part in parts) + _replace(model, pack_with(Scratch(dtype)))


def unpack(model: nn.Module) -> int:
    """Put the plain layers back, bit for bit as they were computed with; how many."""
    return _replace(model, lambda layer: layer.unpacked() if isinstance(layer, Packed) else None)


def can_be_packed(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a layer computes in that dtype what its packed kind does. Subclasses may compute something else."""
    if dtype not in DTYPES or type(layer) not in KINDS:
        return False
    if isinstance(layer, GEGLU):
        return type(layer.proj) is nn.Linear and can_be_packed(layer.proj, dtype)
    if isinstance(layer, nn.Linear):
        return dtype is not torch.float32 or layer.weight.numel() > LEAST_WEIGHTS_IN_FLOAT32
    if isinstance(layer, DoublingConv2d) and (_geometry(layer) != USUAL or layer.groups != 1):
        return False
    return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


@functools.lru_cache(maxsize=None)
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators, and they give what the plain layers give, for weights of that dtype."""
    if dtype not in DTYPES:
        return False
    trials = [
        (nn.Linear, {"in_features": 16, "out_features": 32}, (3, 16)),
        (GEGLU, {"dim_in": 16, "dim_out": 32}, (3, 16)),
        (nn.Conv2d, {"in_channels": 16, "out_channels": 32, "kernel_size": 1}, (1, 16, 4, 16)),  # a product
        (nn.Conv2d, {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1}, (1, 16, 4, 16)),
    ]
    try:
        with torch.no_grad():
            return all(_works(kind, sizes, shape, dtype) for kind, sizes, shape in trials)
    except (RuntimeError, AttributeError, TypeError) as error:
        log.info("torch %s does not take packed weights: %s", torch.__version__, first_line(error))
        return False


def _works(kind: Any, sizes: Dict[str, int], shape: Sequence[int], dtype: torch.dtype) -> bool:
    with without_init():  # no number is drawn, for that would change what is drawn after it
        layer = kind(**sizes)
    for owner in layer.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = nn.Parameter(_waves(parameter.shape, dtype), requires_grad=False)
    x, before = _waves(shape, dtype), {name: value.clone() for name, value in layer.state_dict().items()}
    expected = layer(x)
    for owner in layer.modules():
        if "weight" in owner._parameters:  # as a file has it: in another dtype, and these numbers are the same in it
            owner._parameters["weight"] = nn.Parameter(owner._parameters["weight"].double(), requires_grad=False)
    scratch = Scratch(dtype)
    packed = KINDS[kind](layer, scratch)
    packed(x)
    scratch.hold(torch.zeros(max(value.numel() for value in before.values()), dtype=torch.float64))
    eps = torch.finfo(dtype).eps * 8
    # What is packed must lie in memory of its own: the scratch holds zeros by now.
    for count in (1, 3):
        if not torch.allclose(packed(torch.cat([x] * count)), torch.cat([expected] * count), rtol=eps, atol=eps):
            return False
    return all(torch.equal(value, before[name]) for name, value in packed.unpacked().state_dict().items())


def _waves(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Numbers of both signs, no two neighbours alike, small enough that a sum of 144 products is near 1."""
    count = int(torch.Size(shape).numel())
    return torch.linspace(0, count, count).sin().mul(0.25).to(dtype).view(*shape)


def _geometry(layer: nn.Conv2d) -> Sequence[Any]:
    return [layer.kernel_size, layer.padding, layer.stride, layer.dilation]


def _replace(module: nn.Module, replacement: Any) -> int:
    replaced = 0
    for name, child in list(module.named_children()):
        new = replacement(child)
        if new is None:
            replaced += _replace(child, replacement)
        else:
            setattr(module, name, new)
            replaced += 1
    return replaced
