"""What is done behind the work, in a thread of its own: one thing at a time, and nothing that it raises is lost."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Callable, Optional, Type


class Behind:
    """Does what is handed to it while the caller goes on; at the end of the `with` all of it is done.

    What it raises comes out of the next `settle`, or of the end of the `with`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="behind")
        self._last: Optional[Future[object]] = None

    def submit(self, do: Callable[[], object]) -> None:
        """Begin `do`. What was handed over before must be settled, so that never more than one thing is waiting."""
        if self._last is not None:
            raise RuntimeError("settle what was submitted before")
        self._last = self._thread.submit(do)

    def settle(self) -> None:
        """Wait until what was handed over is done, and raise what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with self._thread:
            self.settle()
