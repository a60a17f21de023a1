"""Which card of a node is this process's own. Without torch: it must be settled before torch looks for cards.

A generic Slurm GRES such as `dcu` gives a job no device variable at all, so the card is the process's rank on its node;
where the site or Slurm lists cards, it is the entry of that list. HIP_VISIBLE_DEVICES alone restricts a DCU and
CUDA_VISIBLE_DEVICES a GPU, so both are set. ROCR_VISIBLE_DEVICES is left as it is: HIP counts among what it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import MutableMapping

from ldm.errors import DeviceError

HIP = "HIP_VISIBLE_DEVICES"
CUDA = "CUDA_VISIBLE_DEVICES"
ROCR = "ROCR_VISIBLE_DEVICES"
NO_CARD = ("", "-1", "NoDevFiles")  # Slurm writes NoDevFiles where a job asked for no card


@dataclass(frozen=True)
class BoundCard:
    """The card of one process. `listed` is what the process was given to choose from, None where nobody listed any."""

    card: str
    listed: tuple[str, ...] | None
    shared: bool

    def __str__(self) -> str:
        if self.listed is None:
            return f"card {self.card} by local rank, none listed by Slurm or the site"
        shared = ", shared with another process" if self.shared else ""
        return f"card {self.card} of {len(self.listed)} listed ({','.join(self.listed)}){shared}"


def bind_card(local_rank: int, environ: MutableMapping[str, str]) -> BoundCard | None:
    """Leave one card visible in `environ`, chosen by the rank of this process on its node, counted from 0.

    Call it before torch is imported. None, and nothing is set, where the environment says that there is no card.
    With more processes than cards listed, ranks go round and `shared` is true.
    """
    if local_rank < 0:
        raise DeviceError(f"a local rank is counted from 0, got {local_rank}; see SLURM_LOCALID")
    listed = listed_cards(environ)
    if listed is not None and not listed:
        return None
    card = str(local_rank) if listed is None else listed[local_rank % len(listed)]
    environ[HIP] = environ[CUDA] = card
    return BoundCard(card=card, listed=listed, shared=listed is not None and local_rank >= len(listed))


def listed_cards(environ: MutableMapping[str, str]) -> tuple[str, ...] | None:
    """The cards that the environment names, () where it says none, None where it says nothing."""
    for variable in (HIP, CUDA):
        if variable in environ:
            return _split(environ[variable])
    if ROCR in environ:
        return tuple(str(index) for index in range(len(_split(environ[ROCR]))))
    return None


def _split(value: str) -> tuple[str, ...]:
    if value.strip() in NO_CARD:
        return ()
    return tuple(card.strip() for card in value.split(",") if card.strip())
