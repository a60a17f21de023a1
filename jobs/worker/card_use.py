"""How busy a card is, as the site's own tool says: hy-smi (DCU), rocm-smi or nvidia-smi, whichever is on PATH.

It is a number for people to look at, so nothing that a tool prints, or fails to print, is ever an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from typing import Callable, Dict, Optional, Sequence, Tuple

Tool = Callable[[Sequence[str]], Optional[str]]

TOOL_SECONDS = 5.0
LOOK_SECONDS = 50.0
ROCM_TOOLS = ("hy-smi", "rocm-smi")
# `--json` is often not JSON (commas are missing, units are within values), so it is searched and not parsed:
#   "card0": {"HCU use (%)": "27.5"}      or, without --json,      HCU[0]  : HCU use (%): 27.5
CARD_OR_USE = re.compile(r'"card(\d+)"|\b[GDH][PC]U\[(\d+)\]|\b[GDH][PC]U use \(%\)"?\s*:\s*"?\s*(\d+(?:\.\d+)?)')
USE_COLUMN = re.compile(r"[GDH][PC]U%")
NVIDIA = ("nvidia-smi", "--query-gpu=index,uuid,utilization.gpu", "--format=csv,noheader,nounits")


class CardWatch:
    """Looks at a card once a minute, beside the work: behind a batch it would always find the card idle.

    A tool that hangs, as one does when the driver is gone, holds up this thread alone, and no longer than the process.
    """

    def __init__(self, card: str, tool: Optional[Tool] = None) -> None:
        self.use: Optional[float] = None  # in per cent, as of the last look
        self._card = card
        self._tool = tool
        if card:
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            self.use = sample(self._card, self._tool)


def sample(card: str, tool: Optional[Tool] = None) -> Optional[float]:
    """How busy the card of this number (or NVIDIA's UUID) is, in per cent; None where no tool says so."""
    tool = tool or run_tool
    if not card:
        return None
    for name in ROCM_TOOLS:
        use = parse_uses(tool([name, "--showuse", "--json"])) or parse_table(tool([name]))
        if card in use:
            return use[card]
    return parse_nvidia(tool(NVIDIA), card)


def run_tool(command: Sequence[str]) -> Optional[str]:
    """What a tool prints; None if it is not here, or gives no answer in time."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(list(command), capture_output=True, timeout=TOOL_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def parse_uses(text: Optional[str]) -> Dict[str, float]:
    """Each card's use from `--showuse`, with or without --json, well formed or not."""
    found: Dict[str, float] = {}
    card: Optional[str] = None
    for in_json, in_text, use in CARD_OR_USE.findall(text or ""):
        if not use:
            card = in_json or in_text
        elif card is not None:
            found.setdefault(card, float(use))
    return found


def parse_table(text: Optional[str]) -> Dict[str, float]:
    """Each card's use from the table that the tool prints without options: a line a card, under a line with DCU%.

        DCU  Temp   AvgPwr  Fan   Perf    PwrCap  VRAM%  DCU%
        0    47.0c  58.0W   0.0%  manual  450.0W    0%   37%

    Some tables have more columns on the left than names, so the column is counted from the right.
    """
    found: Dict[str, float] = {}
    column: Optional[int] = None
    for words in map(str.split, (text or "").splitlines()):
        names = [index for index, word in enumerate(words) if USE_COLUMN.fullmatch(word)]
        if names:
            column = names[-1] - len(words)
        elif column is not None and words and words[0].isdigit() and len(words) >= -column:
            number = re.fullmatch(r"(\d+(?:\.\d+)?)%", words[column])
            if number:
                found[words[0]] = float(number.group(1))
    return found


def parse_nvidia(text: Optional[str], card: str) -> Optional[float]:
    """A card's use from nvidia-smi's lines of index, UUID and use; a UUID may be cut, as in CUDA's variable."""
    for line in (text or "").splitlines():
        row = _row(line)
        if row and (row[0] == card or (card.startswith(("GPU-", "MIG-")) and row[1].startswith(card))):
            return float(row[2]) if re.fullmatch(r"\d+(\.\d+)?", row[2]) else None
    return None


def _row(line: str) -> Optional[Tuple[str, str, str]]:
    words = [word.strip() for word in line.split(",")]
    return (words[0], words[1], words[2]) if len(words) == 3 else None
