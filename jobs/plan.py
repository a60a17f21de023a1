"""Planning: which picture has which number, file and shard, before any worker starts. Pure functions over a stream.

    {"index":7,"shard":0,"file":"samples/000/000007.png","request_id":"...","request":{...}}    one line of plan.jsonl

The plan's id changes when, and only when, the pictures, their files or the model change; how the work is done (shards,
batch size, cards, cluster) is no part of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from json.encoder import encode_basestring
from typing import Iterable, Iterator, List, Mapping, Sequence, Tuple, TypeVar

from jobs.spec import PlannedImage, PlanTotals
from ldm.errors import ConfigError, RunError
from ldm.inference.spec import GenerationRequest, from_json, to_text

Item = TypeVar("Item")

FILES_PER_FOLDER = 1000
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def planned_images(
    requests: Iterable[GenerationRequest], images_per_shard: int, format: str = "png"
) -> Iterator[PlannedImage]:
    """Give each request its number, its file and its shard, in order."""
    for index, request in enumerate(requests):
        yield PlannedImage(
            index=index,
            shard=index // images_per_shard,
            file=image_file(index, format),
            request_id=request.request_id,
            request=request,
        )


def image_file(index: int, format: str = "png") -> str:
    """The path of picture `index` below the run folder, with at most 1,000 files in a folder."""
    return f"samples/{index // FILES_PER_FOLDER:03}/{index:06}{SUFFIXES[format]}"


class PlanDigest:
    """The identity of a plan, gathered while its pictures go by, so that they need not be kept."""

    def __init__(self, model: Mapping[str, str], images_per_shard: int) -> None:
        """`model`: what the pictures depend on beside their requests, such as the sha256 of the checkpoint."""
        self._digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode("utf-8"))
        self._images_per_shard = images_per_shard
        self._images = 0
        self._shards = 0

    def add(self, image: PlannedImage) -> None:
        self._digest.update(f"\n{image.index} {image.file} {image.request_id}".encode("ascii"))
        self._images += 1
        self._shards = image.shard + 1

    def totals(self) -> PlanTotals:
        return PlanTotals(self._digest.hexdigest(), self._images, self._shards, self._images_per_shard)


def to_line(image: PlannedImage) -> str:
    """One line of plan.jsonl, with its end."""
    return (
        f'{{"index":{image.index},"shard":{image.shard},"file":{encode_basestring(image.file)},'
        f'"request_id":"{image.request_id}","request":{to_text(image.request)}}}\n'
    )


def from_line(line: str) -> PlannedImage:
    """The picture that `to_line` wrote; RunError if the line is not one of its."""
    try:
        values = json.loads(line)
        return PlannedImage(**{**values, "request": from_json(values["request"])})
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"plan.jsonl is damaged at {line[:60]!r}: {error}; plan the run anew") from error


def groups(items: Sequence[Item], size: int) -> List[Tuple[Item, ...]]:
    """The items in order, `size` at a time; the last group may be shorter."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def parse_ranges(text: str) -> List[int]:
    """The numbers that `index_ranges` wrote; ConfigError if it did not."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ConfigError(f"numbers are written as 0-3,7, got {text!r}")
    bounds = [word.partition("-") for word in text.split(",")]
    return [number for first, _, last in bounds for number in range(int(first), int(last or first) + 1)]


def index_ranges(indices: Sequence[int]) -> str:
    """Ascending numbers as Slurm writes an array, such as 0-3,7,9-10."""
    runs: List[List[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
