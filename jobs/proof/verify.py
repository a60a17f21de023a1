"""Proving a run: every planned picture is there once, whole and as planned, with one record, and nothing else is.

The plan is read once as a stream, the shards one by one or by several processes, so memory does not grow with the run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import functools
import json
import logging
import re
import time
from pathlib import Path
from typing import Callable, Iterable, Iterator, Optional

from jobs.plan import FILES_PER_FOLDER, PlanDigest, from_line, image_file
from jobs.proof.evidence import check_shard
from jobs.proof.findings import Fault, Findings
from jobs.reading import names_in, reading
from jobs.rundir import RunDir, RunInfo
from jobs.spec import PlannedImage
from jobs.storage.pictures import indexed
from jobs.submit.prepare import dependencies
from ldm.errors import RunError
from ldm.inference.files import PART, naming, write_atomically

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0
TAR = re.compile(r"(\d{5,})(?:-(\d+))?\.tar")
UNFINISHED = "is the part of a file, left by a writer that was killed or is at work"


def verify_run(run: RunDir, info: RunInfo, processes: int = 1) -> Findings:
    """Look at all of a run, and write verify.json into its folder."""
    findings = Findings()
    path = run.path / "verify.json"
    with naming(path), contextlib.suppress(FileNotFoundError):
        path.unlink()  # what an earlier look found is not true of this one, should it be cut short
    check_plan(run, info, findings)
    check_names(run, info, findings)
    logged = time.monotonic()
    for shard, found in enumerate(_check_shards(run, info, processes), 1):
        findings.merge(found)
        if time.monotonic() - logged > LOG_SECONDS:
            logged = time.monotonic()
            log.info("verified %d of %d shards", shard, info.plan.shards)
    _write(path, info, findings)
    return findings


def check_plan(run: RunDir, info: RunInfo, findings: Findings) -> None:
    """Whether plan.jsonl is what run.yaml says was planned."""
    digest = PlanDigest(dependencies(info.settings.spec, info.model), info.plan.images_per_shard)
    before, number = sum(findings.faults.values()), 0
    with reading(run.plan_path), run.plan_path.open("rb") as file:
        for number, line in enumerate(file, 1):
            image, wrong = _planned(line, number - 1, info)
            if wrong is not None:
                findings.add(Fault.PLAN, f"plan.jsonl:{number} {wrong}")
            if image is not None:
                digest.add(image)
    if number != info.plan.images:
        findings.add(Fault.PLAN, f"plan.jsonl has {number} pictures, {info.plan.images} were planned")
    elif sum(findings.faults.values()) == before and digest.totals().plan_id != info.plan.plan_id:
        findings.add(Fault.PLAN, "plan.jsonl is another plan than that of run.yaml: its id differs")


def _planned(line: bytes, index: int, info: RunInfo) -> tuple[Optional[PlannedImage], Optional[str]]:
    try:
        image = from_line(line.decode("utf-8"))
    except (RunError, UnicodeDecodeError):
        return None, f"cannot be read: {line[:60]!r}"
    if image.request_id != image.request.request_id:
        return image, f"was edited: its request_id is not that of its request ({image.request.prompt[:60]!r})"
    place = (index, index // info.plan.images_per_shard, image_file(index, info.settings.spec.format))
    if (image.index, image.shard, image.file) != place:
        return image, f"is picture {image.index} of shard {image.shard} in {image.file}, expected are {place}"
    return image, None


def check_names(run: RunDir, info: RunInfo, findings: Findings) -> None:
    """Whether samples/ and records/ hold nothing that the plan does not name; their folders are listed one by one."""
    folders = {f"{number:03}" for number in range(-(-info.plan.images // FILES_PER_FOLDER))}
    in_samples = set(names_in(run.samples))
    listed = indexed(run.index_path).keys()
    tars = {name for name in in_samples if _is_tar(run, info, name)}
    for name in sorted(listed - tars):
        findings.add(Fault.PACKING, f"index.json names {name}, which is not there")
    _name_strays(run.samples, in_samples - folders - tars - ({run.index_path.name} if tars else set()), findings)
    for folder in sorted(in_samples & folders):
        planned = range(int(folder) * FILES_PER_FOLDER, min((int(folder) + 1) * FILES_PER_FOLDER, info.plan.images))
        files = {Path(image_file(index, info.settings.spec.format)).name for index in planned}
        _name_strays(run.samples / folder, set(names_in(run.samples / folder)) - files, findings)
    records = run.records_path(0).parent
    named = {run.records_path(shard).name for shard in range(info.plan.shards)}
    _name_strays(records, set(names_in(records)) - named, findings)


def _is_tar(run: RunDir, info: RunInfo, name: str) -> bool:
    """Whether it is the tar of a shard, or a further one with all those before it."""
    found = TAR.fullmatch(name)
    if not found or int(found.group(1)) >= info.plan.shards:
        return False
    shard, part = int(found.group(1)), int(found.group(2) or 0)
    return run.tar_path(shard, part).name == name and all(run.tar_path(shard, k).exists() for k in range(part))


def _name_strays(folder: Path, names: Iterable[str], findings: Findings) -> None:
    for name in sorted(names):
        why = UNFINISHED if PART.fullmatch(name) else "is nothing that was planned"
        findings.add(Fault.STRAY, f"{folder.name}/{name} {why}")


def _check_shards(run: RunDir, info: RunInfo, processes: int) -> Iterator[Findings]:
    """What is found in each shard, in their order."""
    check: Callable[[int], Findings] = functools.partial(check_shard, run.path, info)
    if processes == 1:
        yield from map(check, range(info.plan.shards))
        return
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        yield from pool.map(check, range(info.plan.shards))


def _write(path: Path, info: RunInfo, findings: Findings) -> None:
    values = {
        "plan_id": info.plan.plan_id,
        "verified": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "whole": findings.whole,
        "planned": info.plan.images,
        **findings.to_json(),
    }
    write_atomically(path, (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode("utf-8"))
