"""A program that computes when it is asked, and the one that asks: lines of JSON over its standard streams.

The standard library alone, so that another project's program can answer in the same words and be timed by the same
watch. One question is answered at a time, so of several servers only the one that was asked computes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence

LEAST_SECONDS = 0.2  # that a sample lasts: short calls are repeated within one
LAST_LINES = 12  # of what a server said before it ended

Answers = Mapping[str, Callable[..., Any]]


class ServerError(RuntimeError):
    """A server has ended instead of answering; the message holds its last words."""


def serve(load: Callable[[], Answers]) -> None:
    """Load, then answer questions until the input ends. What libraries print goes to the errors, not in between."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answers = load()
    _say(out, sorted(answers))
    for line in sys.stdin:
        name, *words = json.loads(line)
        _say(out, answers[name](*words))


def seconds_of(call: Callable[[], Any], least: float = LEAST_SECONDS) -> float:
    """Seconds that a call takes, the mean of as many as fit into `least` seconds."""
    calls, started = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        passed = time.perf_counter() - started
        if passed >= least:
            return passed / calls


def peak_mib() -> float:
    """The most memory that this process has had, pages of mapped files included."""
    return memory_mib("VmHWM")  # not getrusage: that keeps the memory of the process which started this one


def moment() -> str:
    """Now, by a clock that all processes of a machine share, and the most memory until now in MiB."""
    return f"{time.perf_counter()} {peak_mib()}"


def ending_after(call: Callable[..., Any]) -> Callable[..., None]:
    """The call, with which the process ends without clearing up, after a line of the moments before and behind it."""

    def called(*words: Any, **others: Any) -> None:
        before = moment()
        call(*words, **others)
        print(f"\n{before} {moment()}", flush=True)
        os._exit(0)

    return called


def memory_mib(what: str) -> float:
    """A line of this process's memory in /proc (proc(5)), such as VmRSS."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{what}:"))) / 1024


class Server:
    """A running server. `ask` waits for the answer."""

    def __init__(self, command: Sequence[str], env: Optional[Mapping[str, str]] = None) -> None:
        self._command = command
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - till `close`
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.questions = self._answer()

    def ask(self, name: str, *words: Any) -> Any:
        """The answer to one question; ServerError if there is none."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps([name, *words]) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let it end: it does when its questions do."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        words = "".join(self._errors.readlines()[-LAST_LINES:])
        self.close()
        raise ServerError(f"{' '.join(self._command)} ended with status {status}\n{words}")


@contextlib.contextmanager
def servers(commands: Mapping[str, Callable[[], Server]]) -> Iterator[Dict[str, Server]]:
    """Start all of them, one after the other, and end them with the block."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name, start in commands.items():
            started[name] = server = start()
            stack.callback(server.close)
        yield started


def _say(out: Any, answer: Any) -> None:
    print(json.dumps(answer), file=out, flush=True)
