"""Read the pickle of a checkpoint without running anything that it says. Without torch.

A pickle names functions and calls them. Here every name leads to one of three things: a record of where a tensor lies;
an inert stub, for the Lightning and numpy objects that training leaves beside the weights; or WeightsError. Nothing is
imported, nothing of torch or numpy is called, and what is called is made anew for each load, so that a pickle which
rewrites its own objects (opcode BUILD) changes nothing that outlives it.

The unpickler is pickle's own in Python, not the one in C: there a damaged number of a memo entry, four bytes, makes it
ask for 32 GB. The pickle of a whole Stable Diffusion takes it a tenth of a second.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from typing import Any, BinaryIO, Callable, NamedTuple

from ldm.errors import WeightsError
from ldm.inference.weightfile import printable

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
INERT_PACKAGES = frozenset({"pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics"})
INERT_GLOBALS = frozenset(
    [
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("scalar", "_reconstruct")
    ]
    + [("numpy", name) for name in ("dtype", "ndarray", "float16", "float32", "float64", "int32", "int64", "bool_")]
    + [("torch", name) for name in ("Size", "device", "float16", "float32", "float64", "bfloat16", "int32", "int64")]
    + [("_codecs", "encode")]  # how pickles of protocol 2 write the bytes of a numpy scalar
)
# What pickle raises on bytes that are no pickle, or on a stub used for what it cannot do.
PICKLE_ERRORS = (
    pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, MemoryError, OverflowError, RecursionError,
    TypeError, ValueError, struct.error,
)  # fmt: skip


class PickledStorage(NamedTuple):
    """A run of `numel` elements, `start` elements into the stored block called `key`."""

    dtype: str
    key: str
    numel: int
    start: int


class PickledTensor(NamedTuple):
    """A view of a storage; `offset` and `stride` in elements."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Pickled(NamedTuple):
    """What a pickle holds: plain values, PickledTensors and stubs; and the dtype of each stored block it speaks of."""

    value: Any
    dtypes: dict[str, str]


def load_pickle(file: BinaryIO, source: str) -> Pickled:
    """The next pickle of a file, which should lie in memory: lengths in a pickle are believed.

    WeightsError names what it refuses.
    """
    unpickler = _Unpickler(file, source)
    try:
        return Pickled(unpickler.load(), unpickler.dtypes)
    except PICKLE_ERRORS as error:
        reason = printable(str(error) or type(error).__name__)
        raise WeightsError(f"{source} is damaged or no checkpoint: its pickle cannot be read ({reason})") from error


class _Unpickler(pickle._Unpickler):
    def __init__(self, file: BinaryIO, source: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.dtypes: dict[str, str] = {}
        self._source = source
        self._known = _known_globals()

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key not in self._known:
            if key not in INERT_GLOBALS and module.split(".")[0] not in INERT_PACKAGES:
                raise WeightsError(
                    f"{self._source} asks to run {printable(f'{module}.{name}')}, which weights have no need of: it "
                    "may be malicious and is not opened; use a .safetensors of the same model"
                )
            self._known[key] = type(name, (_Inert,), {})
        return self._known[key]

    def persistent_load(self, pid: Any) -> PickledStorage:
        kind, storage_type, key, _location, numel, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        self.dtypes[key] = storage_type.dtype
        start = 0
        if view and view[0] is not None:
            _, start, numel = view[0]
        return PickledStorage(storage_type.dtype, key, *_whole((numel, start)))


class _StorageType(NamedTuple):
    dtype: str


class _Inert:
    """Takes whatever a pickle does to an object, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


def _known_globals() -> dict[tuple[str, str], Any]:
    known: dict[tuple[str, str], Any] = {("torch", name): _StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()}
    known["collections", "OrderedDict"] = OrderedDict
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        known["torch._utils", name] = _tensor_function()
    for name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        known["torch._utils", name] = _parameter_function()
    return known


def _tensor_function() -> Callable[..., PickledTensor]:
    def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> PickledTensor:
        if not isinstance(storage, PickledStorage):
            raise pickle.UnpicklingError("a tensor without a storage")
        (offset,), shape, stride = _whole((offset,)), _whole(shape), _whole(stride)
        if len(shape) != len(stride):
            raise pickle.UnpicklingError(f"a tensor of shape {shape} with strides {stride}")
        return PickledTensor(storage, offset, shape, stride)

    return rebuild_tensor


def _parameter_function() -> Callable[..., Any]:
    return lambda tensor, *_: tensor


def _whole(numbers: Any) -> tuple[int, ...]:
    sizes: tuple[int, ...] = tuple(numbers)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise pickle.UnpicklingError(f"sizes must be whole numbers from 0 on, got {sizes!r}")
    return sizes
