"""Read stored tensors into memory, each when it is asked for.

On a local disk a tensor is a view of the mapped file: it costs no memory until its pages are touched, and then only
page cache that all processes of the machine share. On a network file system (Lustre, NFS) touching pages one by one is
slow, and a file that another client rewrites kills the process, so there each tensor is read whole into its own memory.
"""

from __future__ import annotations

import logging
import mmap
import os
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.errors import WeightsError
from ldm.inference.contents import Contents, StoredTensor

log = logging.getLogger(__name__)

MOUNTS = Path("/proc/self/mounts")
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
        self._file = FileIO(str(contents.path))
        if mapped is None:
            mapped = not is_on_network(contents.path, MOUNTS)
        self._map = _map(self._file) if mapped else None

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, stored: StoredTensor) -> Tensor:
        """The tensor, with the dtype, shape and strides that it was stored with."""
        dtype = getattr(torch, stored.dtype)
        if not stored.span:
            return torch.empty(stored.shape, dtype=dtype)
        if self._map is not None and stored.offset % dtype_bytes(dtype) == 0:
            flat = torch.frombuffer(self._map, dtype=dtype, count=stored.span, offset=stored.offset)
        else:
            flat = torch.frombuffer(self._read_bytes(stored), dtype=dtype)
        return flat.as_strided(stored.shape, stored.stride)

    def release(self, stored: StoredTensor) -> None:
        """Give the pages of a tensor that is needed no more back to the system; the file keeps them."""
        if self._map is None:
            return
        begin = -(-stored.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (stored.offset + stored.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def _read_bytes(self, stored: StoredTensor) -> np.ndarray:
        memory = np.empty(stored.nbytes, dtype=np.uint8)
        left = memory.data
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


def dtype_bytes(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def is_on_network(path: Path, mounts: Path) -> bool:
    """Whether a file lies on a network file system by the table of mounts (`device place type ...` a line)."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    real = os.path.realpath(path)
    kind, longest = "", -1
    for _, place, mounted, *_ in (line.split() for line in lines):
        place = place.replace("\\040", " ")
        if len(place) > longest and os.path.commonpath([place, real]) == place:
            kind, longest = mounted, len(place)
    return kind.startswith(NETWORK_FILE_SYSTEMS)
