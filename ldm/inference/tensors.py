"""Read stored tensors into memory, each when it is asked for.

On a local disk a tensor is a view of the mapped file: it costs no memory until its pages are touched, then only page
cache that all processes of the machine share, and none again when it is gone. On a network file system (Lustre, NFS)
touching pages one by one is slow, and a file that another client rewrites kills the process, so there each tensor is
read whole into its own memory.
"""

from __future__ import annotations

import logging
import mmap
import weakref
from io import FileIO
from pathlib import Path
from typing import Iterable

import numpy as np
import torch
from torch import Tensor

from ldm.errors import WeightsError
from ldm.inference.contents import Contents, StoredTensor
from ldm.inference.files import MOUNTS, file_system_of
from ldm.inference.weightfile import naming_the_file

log = logging.getLogger(__name__)

NETWORK_FILE_SYSTEMS = (
    "lustre", "nfs", "gpfs", "beegfs", "ceph", "pvfs2", "orangefs", "panfs", "glusterfs", "cifs", "smb", "9p", "fuse.",
    "parastor",
)  # fmt: skip


class TensorReader:
    """The tensors of one file, to be used in a `with`; what has been read outlives it.

    `mapped` says whether tensors are views of the file; None decides by the file system that it is on.
    """

    def __init__(self, contents: Contents, *, mapped: bool | None = None) -> None:
        self._path = contents.path
        with naming_the_file(contents.path):
            self._file = FileIO(str(contents.path))
        if mapped is None:
            mapped = not is_on_network(contents.path)
        self._map = _map(self._file) if mapped else None
        self._shared = _that_share(contents.tensors.values()) if mapped else frozenset()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, stored: StoredTensor) -> Tensor:
        """The tensor, with the dtype, shape and strides that it was stored with."""
        dtype = getattr(torch, stored.dtype)
        if not stored.span:
            return torch.empty(stored.shape, dtype=dtype)
        if self._map is not None and self.is_view(stored):
            view = memoryview(self._map)[stored.offset : stored.offset + stored.nbytes]
            if stored not in self._shared:
                weakref.finalize(view, _give_back, self._map, stored).atexit = False
            flat = torch.frombuffer(view, dtype=dtype)
        else:
            flat = torch.frombuffer(self._read_bytes(stored), dtype=dtype)
        return flat.as_strided(stored.shape, stored.stride)

    def is_view(self, stored: StoredTensor) -> bool:
        """Whether the tensor is a view of the mapped file."""
        return self._map is not None and stored.offset % dtype_bytes(getattr(torch, stored.dtype)) == 0

    def _read_bytes(self, stored: StoredTensor) -> np.ndarray:
        memory = np.empty(stored.nbytes, dtype=np.uint8)
        left = memory.data
        with naming_the_file(self._path):
            self._file.seek(stored.offset)
            while left:
                count = self._file.readinto(left)
                if not count:
                    raise WeightsError(f"{self._path} became shorter while it was read; let the copy to it end first")
                left = left[count:]
        return memory


def _map(file: FileIO) -> mmap.mmap | None:
    try:
        # Private and writable: torch warns of read-only memory, and a write must never reach the file.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:  # some file systems cannot map, and a limit on address space may forbid it
        log.info("%s cannot be mapped (%s): it is read instead", file.name, error)
        return None


def _give_back(mapped: mmap.mmap, stored: StoredTensor) -> None:
    """Take the pages of a tensor that is gone out of this process; the file keeps them."""
    begin = -(-stored.offset // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (stored.offset + stored.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _that_share(tensors: Iterable[StoredTensor]) -> frozenset[StoredTensor]:
    """Those that lie in each other's bytes: what was written to one must not go with the pages of another."""
    shared = set()
    last = None
    for stored in sorted(tensors, key=lambda each: each.offset):
        if last is not None and stored.offset < last.offset + last.nbytes:
            shared |= {last, stored}
        if last is None or stored.offset + stored.nbytes > last.offset + last.nbytes:
            last = stored
    return frozenset(shared)


def dtype_bytes(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def is_on_network(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a file lies on a network file system by the table of mounts."""
    return file_system_of(path, mounts).startswith(NETWORK_FILE_SYSTEMS)
