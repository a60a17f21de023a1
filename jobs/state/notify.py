"""Telling a webhook how a run ended, where the user has asked for it; nothing else in this program calls out."""

from __future__ import annotations

import json
import logging
import urllib.request
from http.client import HTTPException
from typing import Any, Dict
from urllib.parse import urlsplit

from jobs.rundir import RunDir
from jobs.state.report import Report, format_totals

log = logging.getLogger(__name__)

SECONDS = 10.0


def summary_of(run: RunDir, report: Report) -> Dict[str, Any]:
    """What a webhook is told. `text` says it in words, which is what chat services show."""
    return {
        "text": f"{run.path.name}: {format_totals(report)[0]}",
        "run": str(run.path),
        "finished": report.finished,
        "planned": report.planned,
        "done": report.done,
        "flagged": report.flagged,
        "failed": report.failed,
        "quarantined": report.quarantined,
        "missing": report.missing,
        "images_per_second": report.images_per_second,
        "card_hours": report.card_hours,
        "cost": report.cost,
        "currency": report.currency,
    }


def notify(url: str, summary: Dict[str, Any], seconds: float = SECONDS) -> bool:
    """POST `summary` as JSON; says whether it was taken. A failure is a warning and never more: the run has ended."""
    try:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("a webhook is a URL that begins with http:// or https://")
        request = urllib.request.Request(
            url,
            data=json.dumps(summary, ensure_ascii=False).encode("utf-8"),
            headers={"Content-Type": "application/json; charset=utf-8"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except (OSError, ValueError, HTTPException) as error:
        log.warning("the webhook was not told: %s", " ".join(str(error).split()))
        return False
