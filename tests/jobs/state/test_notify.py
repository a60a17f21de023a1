"""A webhook is told once how a run ended; one that cannot be told costs a line and no more."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading

import pytest

from jobs.state.notify import notify, summary_of
from jobs.state.report import make_report
from jobs.worker.worker import Worker, run_shard
from tests.jobs.support import FakeModel, prepare


@contextlib.contextmanager
def server(status=200, hang=None):
    """A real server on this machine, and what it was sent: headers and body of each request."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((dict(self.headers), json.loads(body)))
            if hang is not None:
                hang.wait(60)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/hook", received
        finally:
            if hang is not None:
                hang.set()
            listening.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_the_webhook_gets_the_numbers_as_json(tmp_path):
    prepared = prepare(tmp_path, "cluster.price_per_card_hour=1", "cluster.currency=CNY")
    run_shard(prepared.run.shard(0), prepared.run, FakeModel(flag=["picture number 1"]), Worker("one", "fake", 2))
    summary = summary_of(prepared.run, make_report(prepared.run, prepared.info))
    with server() as (url, received):
        assert notify(url, summary)
    [(headers, body)] = received
    assert headers["Content-Type"].startswith("application/json")
    assert (body["done"], body["flagged"], body["missing"], body["finished"]) == (2, 1, 4, False)
    assert body["text"] == "prompts-20240223: 2 of 6 pictures done (33 %), 1 flagged, 0 failed, 4 missing"
    assert body["currency"] == "CNY"


def test_a_server_that_refuses_is_a_warning(caplog):
    with server(status=500) as (url, received):
        assert not notify(url, {"text": "x"})
    assert len(received) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the webhook was not told: HTTP Error 500: Internal Server Error"
    ]


def test_a_server_that_hangs_is_left(caplog):
    with server(hang=threading.Event()) as (url, _):
        assert not notify(url, {"text": "x"}, seconds=0.2)
    assert "timed out" in caplog.text


def test_nobody_there_is_a_warning(caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert not notify(f"http://127.0.0.1:{port}", {})
    assert "Connection refused" in caplog.text


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "nonsense", "", "http://[::1", "http://a b/"])
def test_what_is_no_web_address_is_a_warning_and_nothing_is_opened(url, caplog):
    assert not notify(url, {})
    assert "the webhook was not told" in caplog.text
