"""A few lines of a terminal that are redrawn in place: a bar for the pictures, and text below it."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Optional, Sequence, TextIO, Type

if TYPE_CHECKING:
    from rich.console import RenderableType

BAR_WIDTH = 16  # so that the longest label fits beside it into 80 columns


def is_screen(output: TextIO) -> bool:
    """Whether lines written there can be redrawn."""
    return output.isatty() and os.environ.get("TERM") != "dumb"


class Screen:
    """Use it as a context; what was shown last stays on the terminal."""

    def __init__(self, output: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        # Nothing of what else is printed goes through here: it belongs to the program, not to the picture.
        self._live = Live(
            console=Console(file=output), auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._live.vertical_overflow = "visible"
        self._live.stop()

    def show(self, done: int, planned: int, label: str, lines: Sequence[str] = ()) -> None:
        """Draw `done` of `planned` as a bar, the label beside it and the lines below."""
        self._live.update(_drawing(done, planned, label, lines), refresh=True)


def _drawing(done: int, planned: int, label: str, lines: Sequence[str]) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 1))
    head.add_row(ProgressBar(total=max(1, planned), completed=done, width=BAR_WIDTH), Text(label, no_wrap=True))
    return Group(head, *map(Text, lines))
