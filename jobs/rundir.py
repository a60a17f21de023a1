"""The run folder: where its files are, and how they are made, found and read. Nothing else knows these paths.

    outputs/<name>-YYYYMMDD[-N]/
      run.yaml                    planner, once     what was planned, with what, from what
      plan.jsonl                  planner, once     one planned picture a line, by ascending index and shard
      submissions.jsonl           launcher          one line a submission
      samples/000/000123.png      owning worker     whole or absent
      samples/00012.tar           owning worker     see jobs.storage.pictures; takes the place of a shard's pictures
      samples/index.json          likewise          the tars
      records/shard-00012.jsonl   owning worker     see jobs.records
      workers/<job>/...json       each process       see jobs.attendance
      logs/                       scheduler, launcher
      pause                       a user             workers end once this file is there
      measure                     probe              with it, a worker also tries sizes of batches ...
      measured.json               owning worker      ... and writes what it finds; see jobs.worker.measuring

A run folder appears whole: it is written beside its name and renamed.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Tuple

from jobs.config import Settings, build, read_yaml, to_yaml
from jobs.plan import from_line, image_file
from jobs.reading import names_in, patiently, read_bytes
from jobs.spec import ClusterProfile, JobSpec, PlannedImage, PlanTotals, Shard
from ldm.errors import RunError
from ldm.inference.files import PART, naming, write_atomically

log = logging.getLogger(__name__)

DRAFT_SECONDS = 24 * 3600.0  # to write one takes minutes
FORMAT = 2  # of the run folder; a later program says so when it meets an older one


@dataclass(frozen=True)
class RunModel:
    """The model that a run was planned with; paths are absolute, sizes in bytes."""

    name: str
    config: str
    config_sha256: str
    checkpoint: str
    checkpoint_sha256: str
    checkpoint_bytes: int
    clip: Optional[str]
    clip_sha256: str
    safety_checker: Optional[str]
    guidance_scale: float  # what it paints best with
    size: int  # px, what the model was trained for
    size_multiple: int  # px


@dataclass(frozen=True)
class RunInfo:
    """What run.yaml says. `created` is local time, ISO 8601."""

    plan: PlanTotals
    created: str
    prompts: str
    prompts_sha256: str
    model: RunModel
    settings: Settings
    versions: Dict[str, Optional[str]]
    commit: Optional[str]


class RunDir:
    """One run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.plan_path = self.path / "plan.jsonl"
        self.info_path = self.path / "run.yaml"
        self.submissions_path = self.path / "submissions.jsonl"
        self.samples = self.path / "samples"
        self.index_path = self.samples / "index.json"
        self.logs = self.path / "logs"
        self.workers = self.path / "workers"
        self.pause_path = self.path / "pause"
        self.measure_path = self.path / "measure"
        self.measured_path = self.path / "measured.json"
        self.name_after = f"{self.path.name}-after"  # of the job behind the last picture
        self._info: Optional[RunInfo] = None

    def image_path(self, file: str) -> Path:
        return self.path / file

    def tar_path(self, shard: int, part: int = 0) -> Path:
        """The tar of a shard; part 1 and up have what came after it was packed."""
        return self.samples / f"{shard:05}{f'-{part}' if part else ''}.tar"

    def records_path(self, shard: int) -> Path:
        return self.path / "records" / f"shard-{shard:05}.jsonl"

    def info(self) -> RunInfo:
        """What was planned here, read once, for it never changes; RunError if this is no run folder, or another's."""
        if self._info is None:
            self._info = self._read_info()
        return self._info

    def _read_info(self) -> RunInfo:
        if not patiently(self.info_path, lambda path: path.is_file()):
            raise RunError(f"{self.path} is no run folder: it has no run.yaml")
        values = read_yaml(self.info_path)
        if values.get("format") != FORMAT:
            raise RunError(
                f"{self.info_path} must be of format {FORMAT}, got {values.get('format')}; plan the run anew"
            )
        try:
            return _info(values, str(self.info_path))
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.info_path} is damaged: {error}; plan the run anew") from error

    def shard(self, index: int) -> Shard:
        """One shard, found in the plan by bisection, so that a long plan is not read for a short shard."""
        images = patiently(self.plan_path, lambda path: _shard_images(path, index))
        if not images:
            raise RunError(f"{self.path} has no shard {index}")
        return Shard(index=index, images=images)

    def submissions(self) -> List[Dict[str, Any]]:
        """What was submitted, oldest first; a line that was cut short is passed over."""
        found: List[Dict[str, Any]] = []
        for line in (read_bytes(self.submissions_path) or b"").split(b"\n"):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def add_submission(self, values: Dict[str, Any]) -> None:
        """Add one line, behind the end of one that was cut short."""
        line = json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n"
        with naming(self.submissions_path), self.submissions_path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else "\n" + line
            file.write(line.encode("utf-8"))


def find_runs(outputs: Path, name: str) -> List[RunDir]:
    """The runs of this name, newest first."""
    pattern = re.compile(re.escape(name) + r"-(\d{8})(?:-(\d+))?")
    found = [(pattern.fullmatch(name), outputs / name) for name in names_in(outputs)]
    dated = [((match.group(1), int(match.group(2) or 1)), path) for match, path in found if match]
    return [RunDir(path) for _, path in sorted(dated, reverse=True)]


@contextlib.contextmanager
def drafted(outputs: Path, name: str) -> Iterator[Path]:
    """A new folder beside the runs to write one in; what is left of it at the end is removed.

    So are old ones that killed processes left there: the plan of a million pictures is worth the room.
    """
    draft = outputs.absolute() / f".{name}.{uuid.uuid4().hex[:12]}.part"
    try:
        with naming(draft):
            for folder in ("samples", "records", "logs"):
                (draft / folder).mkdir(parents=True)
        _sweep_drafts(outputs)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sweep_drafts(outputs: Path) -> None:
    """Remove drafts that nobody can be writing any more."""
    for path in (outputs / name for name in names_in(outputs) if PART.fullmatch(name)):
        with contextlib.suppress(OSError):  # another process removes it, or another user made it
            if path.is_dir() and time.time() - path.stat().st_mtime > DRAFT_SECONDS:
                shutil.rmtree(path)
                log.info("%s is removed: a process that was killed had left it", path)


def publish(draft: Path, name: str, today: datetime.date) -> RunDir:
    """Give a finished draft the first free name of the day; the run there if one of the same plan has taken a name."""
    plan_id = plan_id_of(RunDir(draft))
    number = 1
    while True:
        path = draft.parent / f"{name}-{today:%Y%m%d}{f'-{number}' if number > 1 else ''}"
        number += 1
        if _renamed(draft, path):
            return RunDir(path)
        if plan_id is not None and plan_id_of(RunDir(path)) == plan_id:
            return RunDir(path)


def _renamed(draft: Path, path: Path) -> bool:
    """Give the draft its name unless the name is taken, by an empty folder too, which a rename would replace."""
    with naming(path):
        if path.exists():
            return False
        try:
            os.rename(draft, path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
    return True


def write_info(folder: Path, info: RunInfo) -> None:
    """Write the run.yaml of a draft."""
    text = to_yaml(
        {
            "format": FORMAT,
            "created": info.created,
            **vars(info.plan),
            "prompts": info.prompts,
            "prompts_sha256": info.prompts_sha256,
            "commit": info.commit,
            "versions": info.versions,
            "model": info.model,
            "spec": info.settings.spec,
            "cluster": info.settings.profile,
        }
    )
    write_atomically(folder / "run.yaml", text.encode("utf-8"))


def plan_id_of(run: RunDir) -> Optional[str]:
    """The id of a run's plan, None where it cannot be read: another program's folder is not in the way of a new run."""
    with contextlib.suppress(RunError):
        found = re.search(rb"^plan_id: ([0-9a-f]{64})$", read_bytes(run.info_path) or b"", re.MULTILINE)
        return found.group(1).decode("ascii") if found else None
    return None


def shard_indices(plan: PlanTotals, shard: int) -> range:
    """The indices of a shard's pictures."""
    return range(shard * plan.images_per_shard, min((shard + 1) * plan.images_per_shard, plan.images))


def shard_files(run: RunDir, info: RunInfo, shard: int) -> List[Path]:
    """The files that a shard leaves when nothing is dropped or failed."""
    indices = shard_indices(info.plan, shard)
    return [run.image_path(image_file(index, info.settings.spec.format)) for index in indices]


def _info(values: Dict[str, Any], where: str) -> RunInfo:
    spec = build(JobSpec, [(key, value, where) for key, value in values["spec"].items()])
    profile = build(ClusterProfile, [(key, value, where) for key, value in values["cluster"].items()])
    return RunInfo(
        plan=PlanTotals(**{name: values[name] for name in ("plan_id", "images", "shards", "images_per_shard")}),
        created=values["created"],
        prompts=values["prompts"],
        prompts_sha256=values["prompts_sha256"],
        model=RunModel(**values["model"]),
        settings=Settings(spec, profile),
        versions=values["versions"],
        commit=values["commit"],
    )


def _shard_images(path: Path, shard: int) -> Tuple[PlannedImage, ...]:
    with path.open("rb") as file:
        file.seek(_shard_start(file, path.stat().st_size, shard))
        return tuple(image for image in _images(file) if image.shard == shard)


def _images(file: BinaryIO) -> Iterator[Any]:
    """The planned pictures from the file's position to the end of the shard that stands there."""
    first = None
    for line in file:
        image = from_line(line.decode("utf-8"))
        first = image.shard if first is None else first
        if image.shard != first:
            return
        yield image


def _shard_start(file: BinaryIO, size: int, shard: int) -> int:
    """The offset of the first line whose shard is at least `shard`; lines ascend by shard."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        _, found = _line_from(file, middle)
        if found is None or found >= shard:
            high = middle
        else:
            low = middle + 1
    return _line_from(file, low)[0]


def _line_from(file: BinaryIO, offset: int) -> Tuple[int, Optional[int]]:
    """Where the first line at or behind `offset` starts, and its shard; None at the end of the file."""
    file.seek(max(0, offset - 1))
    if offset:
        file.readline()
    start = file.tell()
    line = file.readline()
    return start, from_line(line.decode("utf-8")).shard if line else None
