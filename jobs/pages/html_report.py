"""report.html and report.json: what became of a run, with its pictures, in files that can be carried away.

The page is one file without any address in it: its style and script stand inside and are named by their sha256 in a
Content-Security-Policy that forbids all else. All text from prompts, workers and files goes through Jinja's escaping.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from jobs.attendance import read_attendances
from jobs.cluster.nodes import failing_nodes
from jobs.pages.figures import Figures, node_figures, spread, worker_figures
from jobs.pages.gallery import Entry, Score, Tell, make_entries, page_values, read_plan
from jobs.pages.plots import seconds_axis, time_axis
from jobs.pages.sweep import Sweep, find_sweep
from jobs.rundir import RunDir, RunInfo
from jobs.spec import PlannedImage
from jobs.state.report import Report, make_report
from jobs.state.survey import Survey, take_survey
from jobs.wording import duration
from ldm.inference.files import write_atomically

FORMAT = 1  # of report.json
MOST_PICTURES = 2000
MOST_ROWS = 40  # of workers in the plot; where there are more, nodes take their place
MOST_NODES = 200
MOST_FAILURES = 500  # in the page's table
MOST_NAMED = 4  # samplers or sizes in the page's heading
SUMMARY = (("sampler", "{}"), ("steps", "{} steps"), ("guidance_scale", "guidance {}"), ("size", "{} px"))
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Written:
    """What `write_report` left in the run folder. `shown` of `found` pictures are on the page."""

    html: Path
    json: Path
    shown: int
    found: int
    report: Report


@dataclass(frozen=True)
class Findings:
    """All that a report is made from."""

    run: RunDir
    info: RunInfo
    report: Report
    survey: Survey
    planned: Dict[int, PlannedImage]
    entries: List[Entry]
    workers: List[Figures]
    nodes: List[Figures]
    failing: Dict[str, int]  # nodes that the next submission keeps away from, with the workers that failed there
    clip_weights: Optional[Path]

    @property
    def sweep(self) -> Optional[Sweep]:
        return find_sweep([entry.fields for entry in self.entries])

    @property
    def clip_mean(self) -> Optional[float]:
        scores = [entry.clip for entry in self.entries if entry.clip is not None]
        return sum(scores) / len(scores) if scores else None


def write_report(
    run: RunDir,
    info: RunInfo,
    pictures: int = MOST_PICTURES,
    clip: Optional[Tuple[Path, Score]] = None,
    tell: Optional[Tell] = None,
) -> Written:
    """Write both files, each in place of an older one at once. `pictures` are shown at most, but for some that failed
    or are flagged; `clip` scores those that are shown, with the weights of a file. A run may still be going on.
    """
    findings = _find(run, info, pictures, clip, tell)
    now = datetime.datetime.now().astimezone()
    html, machine = run.path / "report.html", run.path / "report.json"
    values = report_values(findings, now)
    write_atomically(machine, (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode("utf-8"))
    write_atomically(html, render(findings, now).encode("utf-8"))
    return Written(html, machine, len(findings.entries), findings.survey.found, findings.report)


def _find(
    run: RunDir, info: RunInfo, pictures: int, clip: Optional[Tuple[Path, Score]], tell: Optional[Tell]
) -> Findings:
    report = make_report(run, info)
    survey = take_survey(run, info, report.done + report.failed, pictures)
    wanted = {record.index for record in [*survey.shown, *survey.failures]}
    planned, efforts = read_plan(run, wanted)
    attendances = read_attendances(run.workers)
    workers = worker_figures(survey, attendances, efforts)
    return Findings(
        run=run,
        info=info,
        report=report,
        survey=survey,
        planned=planned,
        entries=make_entries(run, survey.shown, planned, clip[1] if clip else None, tell),
        workers=workers,
        nodes=node_figures(survey, workers, efforts),
        failing=failing_nodes(attendances),
        clip_weights=clip[0] if clip else None,
    )


def report_values(findings: Findings, now: datetime.datetime) -> Dict[str, Any]:
    """What report.json says, as plain values. Seconds are those of one picture, its share of a batch."""
    report, survey = findings.report, findings.survey
    seconds = spread(survey.all_seconds)
    return {
        "format": FORMAT,
        "run": findings.run.path.name,
        "plan_id": findings.info.plan.plan_id,
        "written": now.isoformat(timespec="seconds"),
        "complete": report.done == report.planned,
        **dataclasses.asdict(report),
        "currency": findings.info.settings.profile.currency,
        "cost_per_image": _cost_per_image(report),
        "seconds": None if seconds is None else dataclasses.asdict(seconds),
        "failing_nodes": findings.failing,
        "nodes": [_figures_values(node) for node in findings.nodes],
        "workers": [_figures_values(worker) for worker in findings.workers],
        "slowest": [{"index": i, "seconds": seconds, "worker": worker} for seconds, i, worker in survey.slowest[:20]],
        "failures": failure_values(findings),
        "flagged_pictures": [
            {"index": record.index, "file": record.file, "prompt": record.prompt, "seed": record.seed}
            for record in survey.flagged
        ],
        "noted_pictures": [{"index": record.index, "note": record.note} for record in survey.noted],
        "unreadable_pictures": [
            {"index": entry.image.index, "file": entry.image.file, "error": entry.trouble}
            for entry in unreadable(findings.entries)
        ],
        "clip": _clip_values(findings),
    }


def failure_values(findings: Findings) -> List[Dict[str, Any]]:
    """Each failed picture with its reason."""
    found = []
    for failure in findings.survey.failures:
        image = findings.planned.get(failure.index)
        values = {**dataclasses.asdict(failure), "quarantined": failure.quarantined}
        if image is not None:
            values.update(prompt=image.request.prompt, seed=image.request.seed)
        found.append(values)
    return found


def unreadable(entries: Sequence[Entry]) -> List[Entry]:
    """Pictures that should be there, by their records, and are not or are damaged."""
    return [entry for entry in entries if entry.trouble and getattr(entry.record, "file", "")]


def render(findings: Findings, now: datetime.datetime) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(str(TEMPLATES)), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters.update(FILTERS)
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    rows, rows_are = _rows(findings)
    return environment.get_template("report.html.j2").render(
        found=findings,
        info=findings.info,
        report=findings.report,
        seconds=spread(findings.survey.all_seconds),
        cost_per_image=_cost_per_image(findings.report),
        summary=_summary(findings.entries),
        failures=failure_values(findings)[:MOST_FAILURES],
        unreadable=unreadable(findings.entries),
        bad_nodes=[node for node in findings.nodes if node.errors],
        rows=rows,
        rows_are=rows_are,
        axis=seconds_axis(rows),
        clock=time_axis(rows),
        slow=_slow_by_row(findings, rows_are),
        values={
            "pictures": [page_values(entry) for entry in findings.entries],
            "sweep": findings.sweep and dataclasses.asdict(findings.sweep),
        },
        written=now,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    )


def _policy(style: str, script: str) -> str:
    """What the page may do: show pictures that stand inside, and run the style and the script that are meant."""
    first, second = (
        base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{first}'; script-src 'sha256-{second}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _rows(findings: Findings) -> Tuple[List[Figures], str]:
    """What the plot has a row for: workers, or the nodes where those are too many; the slowest are first."""
    if len(findings.workers) <= MOST_ROWS:
        return findings.workers, "worker"
    return findings.nodes[:MOST_NODES], "node"


def _slow_by_row(findings: Findings, rows_are: str) -> Dict[str, List[Tuple[float, int]]]:
    nodes = {worker.name: worker.node for worker in findings.workers}
    found: Dict[str, List[Tuple[float, int]]] = {}
    for seconds, index, worker in findings.survey.slowest:
        found.setdefault(worker if rows_are == "worker" else nodes[worker], []).append((seconds, index))
    return found


def _summary(entries: Sequence[Entry]) -> List[str]:
    """How the pictures were made, in few words: a value where they share it, else from where to where."""
    words = []
    for field, form in SUMMARY:
        found = sorted({entry.fields[field] for entry in entries}, key=str)
        numbers = sorted(value for value in found if not isinstance(value, str))
        ends = [numbers[0], numbers[-1]] if len(numbers) > 1 else found
        joint = " to " if numbers else ", "
        if found and len(ends) <= MOST_NAMED:
            words.append(form.format(joint.join(f"{value:g}" if numbers else str(value) for value in ends)))
    return words


def _cost_per_image(report: Report) -> Optional[float]:
    return report.cost / report.done if report.cost is not None and report.done else None


def _clip_values(findings: Findings) -> Optional[Dict[str, Any]]:
    if findings.clip_weights is None:
        return None
    scores = {entry.image.index: round(entry.clip, 3) for entry in findings.entries if entry.clip is not None}
    return {"weights": str(findings.clip_weights), "mean": findings.clip_mean, "scores": scores}


def _figures_values(figures: Figures) -> Dict[str, Any]:
    return {**dataclasses.asdict(figures), "straggler": figures.is_straggler}


def seconds_text(seconds: float) -> str:
    """0.183 s, 3.21 s, 45.3 s, 132 s: three digits."""
    digits = 3 if seconds < 1 else 2 if seconds < 10 else 1 if seconds < 100 else 0
    return f"{seconds:.{digits}f} s"


def counted(number: int) -> str:
    """12,400."""
    return f"{number:,}"


def shortened(text: str, length: int = 240) -> str:
    """The beginning of a long text."""
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def attributes(value: Any) -> List[Tuple[str, Any]]:
    """The fields of frozen data with something in them, by name."""
    return [(name, each) for name, each in vars(value).items() if each not in (None, "", [], {}, ())]


FILTERS = {
    "attributes": attributes,
    "counted": counted,
    "duration": duration,
    "seconds": seconds_text,
    "shortened": shortened,
}
