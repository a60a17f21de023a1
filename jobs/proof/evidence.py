"""Looking at one shard of a run: its records, its pictures and its tars, each against the plan."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Set, Tuple

from jobs.proof.findings import Fault, Findings
from jobs.reading import reading
from jobs.records import ShardRecords, read_records
from jobs.rundir import RunDir, RunInfo
from jobs.spec import PlannedImage, Shard
from jobs.storage.formats import parameters_text
from jobs.storage.pack import description
from jobs.storage.pictures import indexed, members, own_files, tars
from ldm.errors import RunError
from ldm.inference.infotext import Infotext, parse_infotext
from ldm.inference.spec import ImageRecord

MEMBER = re.compile(r"(\d{9,})(\.\w+)")


def check_shard(folder: Path, info: RunInfo, index: int) -> Findings:
    """All that can be found wrong with a shard of the run in `folder`."""
    findings, run = Findings(), RunDir(folder)
    try:
        shard = run.shard(index)
    except RunError as error:
        findings.add(Fault.PLAN, f"shard {index} cannot be read: {error}")
        return findings
    done = _check_lines(run.records_path(index), shard, findings)
    records = read_records(run.records_path(index))
    own = own_files(run, info, index)
    packed, damaged = _check_tars(run, info, shard, records, findings)
    for image in shard.images:
        record = records.images.get(image.index)
        if record is None:
            _name_unmade(image, records, done, image.index in own | packed, findings)
        elif _agrees(image, record, findings):
            _check_picture(run, info, (image, record), (image.index in own, image.index in packed, damaged), findings)
    if done and own - packed and info.settings.spec.output == "webdataset":
        findings.add(Fault.PACKING, f"shard {index} is done, and {len(own - packed)} of its pictures are in no tar")
    return findings


def _check_lines(path: Path, shard: Shard, findings: Findings) -> Optional[str]:
    """Each line of a records file is whole and speaks of a planned picture, each picture once; a sum ends them.

    The name of the file if its sum says that the shard is done.
    """
    if not path.exists():
        return None
    planned, seen, ended, done = {image.index for image in shard.images}, set(), False, False
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            values = _parsed(line)
            if values is None:
                findings.add(Fault.RECORD, f"{path.name}:{number} cannot be read: {line[:60]!r}")
                continue
            ended, done = "sessions" in values, values.get("done") is True
            index = None if ended else values.get("index")
            if not ended and index not in planned:
                findings.add(Fault.RECORD, f"{path.name}:{number} is about picture {index}, which is not in this shard")
            elif not ended and index in seen:
                findings.add(Fault.RECORD, f"{path.name}:{number} is a second record of picture {index}")
            seen.add(index)
    if not ended:
        findings.add(Fault.RECORD, f"{path.name} does not end with its sum")
    return path.name if ended and done else None


def _parsed(line: bytes) -> Optional[Dict[str, Any]]:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and ("sessions" in values or "index" in values) else None


def _name_unmade(
    image: PlannedImage, records: ShardRecords, done: Optional[str], there: bool, findings: Findings
) -> None:
    """`done`: the records file, if it says that its shard is done; then a resume would not look for the picture."""
    failure = records.failures.get(image.index)
    if failure is not None and not there:
        (findings.given_up if failure.quarantined else findings.failed).append(image.index)
    elif done and failure is None:
        findings.add(Fault.RECORD, f"{done} says that the shard is done, and has no record of picture {image.index}")
    elif there:
        findings.add(Fault.MISSING, f"{image.file} has no record")
    else:
        findings.add(Fault.MISSING, f"picture {image.index} has not been made")


def _agrees(image: PlannedImage, record: ImageRecord, findings: Findings) -> bool:
    """Whether a record speaks of the planned picture; one that was dropped names no file."""
    request = image.request
    planned = (image.request_id, image.file if record.file else "", request.prompt, request.seed)
    recorded = (record.request_id, record.file, record.prompt, record.seed)
    for name, there, expected in zip(("request_id", "file", "prompt", "seed"), recorded, planned):
        if there != expected:
            text = f"the record of picture {image.index} has {name} {there!r}, planned is {expected!r}"
            findings.add(Fault.RECORD, text)
            return False
    return True


def _check_picture(
    run: RunDir,
    info: RunInfo,
    picture: Tuple[PlannedImage, ImageRecord],
    where: Tuple[bool, bool, bool],
    findings: Findings,
) -> None:
    """`where`: whether the picture has a file of its own, is in a tar, and might be in a tar that is damaged."""
    (image, record), (own, packed, damaged) = picture, where
    if not record.file:
        findings.dropped.append(image.index)
        if own or packed:
            findings.add(Fault.STRAY, f"{image.file} is there, and picture {image.index} was dropped")
        return
    if record.flagged:
        findings.flagged.append(image.index)
    if own and packed:
        findings.add(Fault.PACKING, f"{image.file} is there, and in a tar too")
    elif own:
        path = run.image_path(image.file)
        try:
            with reading(path):
                data = path.read_bytes()
        except RunError as error:
            findings.add(Fault.DAMAGED, str(error))
            return
        _note(what_is_wrong(data, image, record, info), image.file, findings)
    elif not packed and not damaged:
        findings.add(Fault.MISSING, f"picture {image.index} is recorded, and nowhere: {image.file}")


def _note(wrong: Optional[str], name: str, findings: Findings) -> None:
    if wrong is None:
        findings.proven += 1
    else:
        findings.add(Fault.DAMAGED, f"{name} {wrong}")


def what_is_wrong(data: bytes, image: PlannedImage, record: ImageRecord, info: RunInfo) -> Optional[str]:
    """Why the bytes of a picture are not those of this plan and this record; None if they are."""
    from PIL import Image

    from ldm.inference.images import parameters_of

    if hashlib.sha256(data).hexdigest() != record.sha256:
        return "has another sha256 than was recorded"
    request = image.request
    try:
        with Image.open(io.BytesIO(data)) as picture:
            text = parameters_of(picture)
            size, format = picture.size, str(picture.format)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"does not decode: {error}"
    if format != info.settings.spec.format.upper():
        return f"is a {format}, planned is a {info.settings.spec.format.upper()}"
    if size != (request.width, request.height):
        return f"has {size[0]} x {size[1]} px, planned are {request.width} x {request.height}"
    planned = parameters_text(request, model=info.model.name, checkpoint_sha256=info.model.checkpoint_sha256)
    return None if text == planned else _difference(parse_infotext(text), parse_infotext(planned))


def _difference(there: Infotext, planned: Infotext) -> Optional[str]:
    """The first of the planned parameters that a picture does not have; more than was planned is no fault."""
    found, expected = (_flat(text) for text in (there, planned))
    for name, value in expected.items():
        if found.get(name, "") != value:
            return f"says {name} {found.get(name, '')[:60]!r}, planned is {value[:60]!r}"
    return None


def _flat(text: Infotext) -> Dict[str, str]:
    return {"prompt": text.prompt, "negative prompt": text.negative_prompt, **text.parameters}


def _check_tars(
    run: RunDir, info: RunInfo, shard: Shard, records: ShardRecords, findings: Findings
) -> Tuple[Set[int], bool]:
    """The pictures that are in the shard's tars, and whether one of the tars is damaged."""
    planned = {image.index: image for image in shard.images}
    seen: Set[int] = set()
    for tar in tars(run, shard.index):
        try:
            count = len(members(tar))
            if indexed(run.index_path).get(tar.name) != {
                "url": tar.name,
                "nsamples": count,
                "filesize": tar.stat().st_size,
            }:
                findings.add(Fault.PACKING, f"index.json does not say of {tar.name} what it holds")
            for key, sample in _samples(tar):
                index = int(key) if key.isdigit() else -1
                record = records.images.get(index)
                if index not in planned or index in seen or record is None or not record.file:
                    findings.add(Fault.DAMAGED, f"{tar.name} holds {key!r}, which does not belong there")
                    continue
                seen.add(index)
                _note(_wrong_sample(sample, planned[index], record, info), f"{tar.name}: {key}", findings)
        except (RunError, tarfile.TarError, OSError) as error:
            findings.add(Fault.DAMAGED, str(error))
            return seen, True
    return seen, False


def _samples(tar: Path) -> Iterator[Tuple[str, Dict[str, bytes]]]:
    """The samples of a tar one by one, as the webdataset library puts them together: neighbours of one key."""
    key = ""
    sample: Dict[str, bytes] = {}
    with tarfile.open(tar, "r:") as file:
        for member in file:
            content = file.extractfile(member)
            found = MEMBER.fullmatch(member.name)
            name, suffix = found.groups() if found else (member.name, "")
            if name != key and sample:
                yield key, sample
                sample = {}
            key = name
            sample[suffix] = content.read() if content else b""
    if sample:
        yield key, sample


def _wrong_sample(
    sample: Mapping[str, bytes], image: PlannedImage, record: ImageRecord, info: RunInfo
) -> Optional[str]:
    suffix = Path(image.file).suffix
    if sorted(sample) != sorted((".json", suffix, ".txt")):
        return f"has {', '.join(sorted(sample))}, planned are .json, {suffix}, .txt"
    if sample[".txt"] != image.request.prompt.encode("utf-8"):
        return "has another prompt in its .txt than was planned"
    if _parsed(sample[".json"]) != description(image, record):
        return "has another .json than was planned"
    return what_is_wrong(sample[suffix], image, record, info)
