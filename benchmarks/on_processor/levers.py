"""What makes ours faster, each a switch that can be turned off, and what was tried and is not in use, to be turned on.

No torch at import: the program that asks the servers reads this list too, and must stay small.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Mapping, Sequence, Tuple

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}  # read by torch's allocator at its first tensor
# glibc returns large blocks to the kernel otherwise, which hands them out again filled with zeros.
KEEP_LARGE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def nothing(*_: Any) -> None:
    """For a lever that is moved elsewhere."""


@dataclass(frozen=True)
class Lever:
    """One change to a server of ours: variables set before it starts, then a change of its code or its loaded pipeline.

    `what` is its row on the page; `dtypes` those that it changes anything in; `first_call` whether it is for the first
    call of a process, which packs the weights, and not for the others.
    """

    what: str
    change: Callable[[Any], None] = nothing
    env: Mapping[str, str] = field(default_factory=dict)
    dtypes: Tuple[str, ...] = ("bfloat16", "float32")
    first_call: bool = False


def replace(owner: Any, name: str, value: Any) -> None:
    """Put another value in the place of one that is there; SystemExit where it is not there any more."""
    if not hasattr(owner, name):
        raise SystemExit(f"{owner} has no {name}: this lever has to be written anew")
    setattr(owner, name, value)


def unpack(pipeline: Any) -> None:
    """Plain weights, as a checkpoint holds them."""
    from ldm.inference import packing

    packing.unpack(pipeline.model)


def channels_last(pipeline: Any) -> None:
    """Plain weights, the convolutions' with the channels innermost, which their outputs follow."""
    import torch

    unpack(pipeline)
    pipeline.model.to(memory_format=torch.channels_last)


def unfused_doubling(_pipeline: Any) -> None:
    """Maps doubled first and then convolved whole, with packed weights."""
    from ldm.inference.packing import PackedConv2d, PackedDoublingConv2d
    from ldm.modules.diffusionmodules.doubling import repeated

    def whole(self: Any, x: Any, size: Any = None) -> Any:
        return PackedConv2d.forward(self, repeated(x, size))

    replace(PackedDoublingConv2d, "forward", whole)


def gated_in_one(pipeline: Any) -> None:
    """The gated layers by one packed product, then GELU of one half of it."""
    from ldm.inference import packing
    from ldm.modules.attention import GEGLU

    dtype = pipeline.model.dtype
    if packing.unpack(pipeline.model):
        replace(packing, "KINDS", {kind: packed for kind, packed in packing.KINDS.items() if kind is not GEGLU})
        packing.pack(pipeline.model, dtype)


def new_maps(pipeline: Any) -> None:
    """A new map for every sum and every activation of the U-Net."""
    from torch import nn

    from ldm.modules import attention
    from ldm.modules.diffusionmodules import openaimodel

    for module in (attention, openaimodel):
        replace(module, "add_into", lambda result, x: result + x)
    for layer in pipeline.model.model.modules():
        if isinstance(layer, nn.SiLU):
            layer.inplace = False


def convolved_narrow(_pipeline: Any) -> None:
    """Narrow maps convolved the other way: by oneDNN where one product is in use, and by one elsewhere."""
    from ldm.inference import convolving

    in_use = convolving.narrow
    replace(convolving, "narrow", lambda dtype: convolving.NARROW - in_use(dtype))


def summed_plainly(_pipeline: Any) -> None:
    """Convolutions by all of their products."""
    from ldm.inference import convolving

    replace(convolving, "FILTERED_PLACES", {})


def fused_attention(_pipeline: Any) -> None:
    """torch's own kernel for attention, whatever the dtype and the processor."""
    from torch.nn import functional

    if hasattr(functional, "scaled_dot_product_attention"):
        attend_by(functional.scaled_dot_product_attention)


def sliced_attention(_pipeline: Any) -> None:
    """Plain operators, all heads at once, in slices of the query places."""
    from ldm.modules import attention

    attend_by(attention.attend_in_slices)


def attention_by_head(_pipeline: Any) -> None:
    """Plain operators, one head and 512 query places at a time."""
    from ldm.modules import attention

    attend_by(attention.attend_by_head)


def attend_by(kernel: Any) -> None:
    """Attention by one kernel."""
    from ldm.modules import attention

    replace(attention, "attention_kernel", lambda *_, **__: kernel)


def doubled_latents(pipeline: Any) -> None:
    """A latent for each text, and all of both computed at every step."""
    replace(type(pipeline.model), "recalls", False)


def compile_network(pipeline: Any) -> None:
    """torch.compile with frozen weights, and attention that it can take apart: the first call of each size compiles,
    for a minute or two.
    """
    import torch
    from torch._inductor import config

    from ldm.modules import attention

    unpack(pipeline)
    if attention.attention_kernel("cpu", pipeline.model.dtype, trains=False) is attention.attend_by_head:
        sliced_attention(pipeline)
    config.freezing = True
    network = pipeline.model.model.diffusion_model
    network.forward = torch.compile(network.forward, dynamic=False)


IN_USE: Dict[str, Lever] = {
    "packing": Lever("weights packed once for oneDNN", unpack),
    "narrow": Lever("narrow maps convolved by what is fastest on the processor", convolved_narrow),
    "filtering": Lever("convolutions by minimal filtering", summed_plainly, dtypes=("float32",)),
    "doubling": Lever("doubled maps convolved as four small ones", unfused_doubling),
    "gating": Lever("gated layers as two products, GELU within one", gated_in_one),
    "attention": Lever("attention by what is fastest on the processor", fused_attention, dtypes=("bfloat16",)),
    "in-place": Lever("sums and activations written over what nobody else has", new_maps),
    "recall": Lever("keys and values of the words kept, and nothing done twice for both texts", doubled_latents),
}
LEFT_OUT: Dict[str, Lever] = {
    "attention-by-head": Lever("attention one head and 512 places at a time", attention_by_head),
    "attention-in-slices": Lever("attention in slices of all heads", sliced_attention),
    "huge-pages": Lever("torch's memory in huge pages", env=HUGE_PAGES),
    "huge-pages-first": Lever("the same: the first call, which packs", env=HUGE_PAGES, first_call=True),
    "malloc": Lever("freed memory kept by the C library", env=KEEP_LARGE_BLOCKS),
    "channels-last": Lever("channels last instead of packed weights", channels_last),
    "compile": Lever("`torch.compile` with frozen weights instead of packed ones", compile_network),
}
LEVERS = {**IN_USE, **LEFT_OUT}


def environment(names: Sequence[str]) -> Dict[str, str]:
    """The variables that these levers need."""
    return {key: value for name in names for key, value in LEVERS[name].env.items()}


def move(pipeline: Any, names: Sequence[str]) -> None:
    """Make the changes of these levers to a pipeline; SystemExit if the process was started without their variables."""
    missing = sorted(f"{key}={value}" for key, value in environment(names).items() if os.environ.get(key) != value)
    if missing:
        raise SystemExit(f"the levers {', '.join(names)} need {', '.join(missing)} set before the start")
    for name in names:
        LEVERS[name].change(pipeline)
