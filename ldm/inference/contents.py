"""Which tensors a file of weights holds, and where each lies in it. Without torch; no tensor is read.

Both formats keep tensors as plain little-endian runs of bytes, so a tensor is a place in the file: dtype, shape,
strides and offset. Every place is checked against the file's size here, so that reading cannot run past its end.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Mapping

from ldm.errors import WeightsError
from ldm.inference.unpickle import PickledTensor, load_pickle
from ldm.inference.weightfile import GIVE_WEIGHTS, WeightFormat, cut_short, naming_the_file, printable, recognise

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
ZIP_LOCAL_HEADER_BYTES = 30
PICKLE_LIMIT = 2**26  # bytes; that of a Stable Diffusion with optimiser states has under 2**20


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: `stride` in elements, `offset` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def span(self) -> int:
        """Elements from the first to the last, both counted; 0 where there are none."""
        return _span(self.shape, self.stride)

    @property
    def nbytes(self) -> int:
        """Bytes from the first element's start to the last one's end."""
        return self.span * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Contents:
    """What a file of weights holds. `global_step` counts the training steps, None where the file does not say."""

    path: Path
    format: WeightFormat
    tensors: Mapping[str, StoredTensor]
    global_step: int | None


def read_contents(path: Path) -> Contents:
    """The table of contents of a `.ckpt` or `.safetensors`; WeightsError where it is damaged, cut short or none.

    Reads a header, a zip directory or a pickle: well under a megabyte of a whole Stable Diffusion. A login node without
    torch can check a checkpoint by it.
    """
    form = recognise(path)
    with naming_the_file(path), path.open("rb") as file:
        size = path.stat().st_size
        if form is WeightFormat.SAFETENSORS:
            return _read_safetensors(path, file, size)
        top, blocks = (_read_zip if form is WeightFormat.ZIP else _read_legacy)(path, file, size)
    tensors = {name: _place(path, name, tensor, blocks) for name, tensor in _state_dict(path, top).items()}
    return Contents(path, form, tensors, _step(top))


@dataclass(frozen=True)
class _Block:
    """A stored run of bytes."""

    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


def _read_safetensors(path: Path, file: BinaryIO, size: int) -> Contents:
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if start > size:
        raise cut_short(path, size, f"and its header alone ends at byte {start:,}")
    try:
        header = json.loads(file.read(length).decode("utf-8"))
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors = {name: _safetensors_entry(entry, start) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} is damaged: its safetensors header cannot be read ({printable(str(error))}); fetch it again"
        ) from error
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=start)
    if end > size:
        raise cut_short(path, size, f"of the {end:,} that its header lists")
    if end < size:
        raise WeightsError(f"{path} is damaged: {size - end:,} bytes follow the last tensor; fetch it again")
    step = str(metadata.get("global_step", ""))
    return Contents(path, WeightFormat.SAFETENSORS, tensors, int(step) if step.isdecimal() else None)


def _safetensors_entry(entry: Any, start: int) -> StoredTensor:
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"the dtype {entry['dtype']} is not one of {', '.join(SAFETENSORS_DTYPES)}")
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError("sizes must be whole numbers from 0 on")
    tensor = StoredTensor(dtype, shape, _contiguous(shape), start + begin)
    if tensor.nbytes != end - begin:
        raise ValueError(f"{end - begin} bytes for a tensor of {tensor.nbytes}")
    return tensor


def _read_zip(path: Path, file: BinaryIO, size: int) -> tuple[Any, dict[str, _Block]]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            pickle_name = next(name for name in entries if name == "data.pkl" or name.endswith("/data.pkl"))
            root = pickle_name[: -len("data.pkl")]
            inside = [entry for name, entry in entries.items() if name.startswith(root)]
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in inside):
                raise WeightsError(
                    f"{path} was packed anew with compression, which torch.save never does; fetch it again"
                )
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise WeightsError(f"{path} is from a big-endian machine, which is not read; fetch a .safetensors")
            if entries[pickle_name].file_size > PICKLE_LIMIT:
                raise WeightsError(f"{path} is damaged: its pickle claims {entries[pickle_name].file_size:,} bytes")
            top = load_pickle(io.BytesIO(archive.read(pickle_name)), str(path)).value
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged: {error}; fetch it again") from error
    prefix = f"{root}data/"
    data = [entry for entry in inside if entry.filename.startswith(prefix)]
    return top, {entry.filename[len(prefix) :]: _zip_block(path, file, entry, size) for entry in data}


def _zip_block(path: Path, file: BinaryIO, entry: zipfile.ZipInfo, size: int) -> _Block:
    file.seek(entry.header_offset)
    header = file.read(ZIP_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    block = _Block(entry.header_offset + ZIP_LOCAL_HEADER_BYTES + name_bytes + extra_bytes, entry.file_size)
    if block.end > size:
        raise cut_short(path, size, f"and {entry.filename} ends at byte {block.end:,}")
    return block


def _read_legacy(path: Path, file: BinaryIO, size: int) -> tuple[Any, dict[str, _Block]]:
    """torch.save before 1.6: magic number, protocol, system, the object, the keys of its blocks; then the blocks,
    each after its number of elements in eight bytes."""
    head = io.BytesIO(file.read(PICKLE_LIMIT))
    _magic, _protocol, system, top, keys = (load_pickle(head, str(path)) for _ in range(5))
    if isinstance(system.value, dict) and system.value.get("little_endian") is False:
        raise WeightsError(f"{path} is from a big-endian machine, which is not read; fetch a .safetensors")
    blocks: dict[str, _Block] = {}
    at = head.tell()
    for key in keys.value:
        if key not in top.dtypes:
            raise WeightsError(f"{path} is damaged: nothing uses its block {key!r}; fetch it again")
        file.seek(at)
        numel = int.from_bytes(file.read(8), "little")
        blocks[key] = _Block(at + 8, numel * ITEM_BYTES[top.dtypes[key]])
        at = blocks[key].end
        if at > size:
            raise cut_short(path, size, f"and its tensors go on to byte {at:,}")
    return top.value, blocks


def _state_dict(path: Path, top: Any) -> dict[str, PickledTensor]:
    """The named tensors of a checkpoint, wrapped in 'state_dict' or bare. `dict`'s own methods: a pickle may have
    given its OrderedDict others."""
    state = dict.get(top, "state_dict", top) if isinstance(top, dict) else top
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not named tensors; {GIVE_WEIGHTS}")
    tensors = {
        name: value for name, value in dict.items(state) if isinstance(name, str) and isinstance(value, PickledTensor)
    }
    if not tensors:
        keys = ", ".join(printable(str(key)) for key in list(dict.keys(state))[:8]) or "nothing"
        raise WeightsError(
            f"{path} holds no tensors under 'state_dict' or at its top, which has: {keys}; {GIVE_WEIGHTS}"
        )
    return tensors


def _step(top: Any) -> int | None:
    step = dict.get(top, "global_step")
    return step if type(step) is int else None


def _place(path: Path, name: str, tensor: PickledTensor, blocks: Mapping[str, _Block]) -> StoredTensor:
    storage = tensor.storage
    item_bytes, first = ITEM_BYTES[storage.dtype], storage.start + tensor.offset
    block = blocks.get(storage.key)
    if block is None or (first + _span(tensor.shape, tensor.stride)) * item_bytes > block.nbytes:
        raise WeightsError(
            f"{path} is damaged: the tensor {printable(name)} lies outside of its block {storage.key!r}; fetch it again"
        )
    return StoredTensor(storage.dtype, tensor.shape, tensor.stride, block.offset + first * item_bytes)


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        stride[axis] = stride[axis + 1] * shape[axis + 1]
    return tuple(stride)
