"""What a private cluster takes from the machine: ports, a folder, an environment, programs."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

LEFTOVERS = re.compile(  # of an allocation, of cards, of environment modules
    r"S(LURM|BATCH|ALLOC|RUN|QUEUE|INFO|ACCT|CANCEL|CONTROL)|(HIP|CUDA|ROCR)_VISIBLE_DEVICES|.*MODULE|BASH_FUNC_m|_LMFILES_"
)
LONGEST_FOLDER = 40  # slurmstepd's sockets lie 60 characters below, and a socket's path ends at 108
MOST_NODES = 64
BLOCK = MOST_NODES + 8  # ports a lab may use: one a node, and those of the daemons beside them
PORTS = range(20000, 32000, BLOCK)  # below those that the kernel gives to clients


class LabError(Exception):
    """The cluster, or a command on it, did not do what the test needs; the text holds what there is to read."""


def clean_environment(environment: Mapping[str, str]) -> Dict[str, str]:
    """The environment of a user who has just logged in: no allocation, no card, no module in it."""
    kept = {name: value for name, value in environment.items() if not LEFTOVERS.match(name)}
    kept["PATH"] = os.pathsep.join([kept.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # where daemons are
    return kept


def reserve_ports() -> Tuple[socket.socket, int]:
    """A block of free ports: its first, which the returned socket holds so that no other session takes the block."""
    for port in random.sample(PORTS, len(PORTS)):
        guard = _bind(port, reuse=False)
        if guard is None:
            continue
        others = [_bind(port + offset, reuse=True) for offset in range(1, BLOCK)]
        for other in others:
            if other is not None:
                other.close()
        if None not in others:
            return guard, port
        guard.close()
    raise LabError(f"no block of {BLOCK} free ports in {PORTS.start}..{PORTS.stop}")


def _bind(port: int, *, reuse: bool) -> Optional[socket.socket]:
    bound = socket.socket()
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        bound.bind(("", port))
    except OSError:
        bound.close()
        return None
    return bound


def short_folder() -> Path:
    """A new folder under the temporary one, or under /tmp where that one's name is too long for sockets below it."""
    parent = tempfile.gettempdir()
    if len(parent) > LONGEST_FOLDER:
        parent = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="lab", dir=parent))
    folder.chmod(0o711)  # munged insists on a way in for everybody
    return folder


def missing_programs() -> List[str]:
    """What the lab needs and this machine lacks."""
    path = clean_environment(os.environ)["PATH"]
    needed = ["munged", "slurmctld", "slurmd", "slurmdbd", "sbatch", "mariadbd", "modulecmd", "ps"]
    return [name for name in needed if shutil.which(name, path=path) is None]
