"""What a user waits for on a login node: planning, status, help, rendering."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Dict, List

from jobs.attendance import End, attend
from jobs.records import RecordBook
from jobs.rundir import RunDir
from ldm.inference.spec import ImageRecord
from on_cluster.measure import Measured, Row, jobs, run

PLAN_SECONDS, PLAN_MIB = 60.0, 1024.0
STATUS_SECONDS = 2.0
START_SECONDS = 0.3
GROWTH_MIB = 8.0  # of the memory, from a tenth of the rows to all
HEAVY = re.compile(r"\|\s+(torch|numpy|PIL|transformers)$", re.MULTILINE)  # in what -X importtime writes
# Says which folders a command lists; runs `python -m jobs` after that.
LISTING = """
import runpy, sys
folders = []
def hear(event, arguments):
    if event in ("os.listdir", "os.scandir") and sys.argv[2] in str(arguments[0]):
        folders.append(str(arguments[0])[len(sys.argv[2]):])
sys.addaudithook(hear)
try:
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)
finally:
    print("listed", folders)
"""
LINES = {  # of a prompts file, by its ending
    ".txt": "a photograph of object number {0}, studio light, detailed, 85mm\n",
    ".jsonl": '{{"prompt": "object number {0}, studio light, detailed", "negative_prompt": "blurry", "seed": {0}, '
    '"steps": 30, "guidance_scale": 7.0, "height": 512, "width": 768, "sampler": "ddim"}}\n',
}


def prompts_file(folder: Path, rows: int, ending: str) -> Path:
    path = folder / f"rows-{rows}{ending}"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(LINES[ending].format(row) for row in range(rows))
    return path


def plan_command(folder: Path, prompts: Path, *settings: str) -> List[str]:
    return [*jobs("plan", str(prompts), "model=rehearsal", f"outputs={folder}", *settings)]


def planning(folder: Path, rows: int, repeats: int) -> List[Row]:
    """Plan `rows` rows and a tenth of them, of plain lines and of JSON objects."""
    table = []
    for ending in LINES:
        few, many = (prompts_file(folder, number, ending) for number in (rows // 10, rows))
        # The first plans, the next ones find its run, for which YAML is read.
        small = max(run(plan_command(folder, few)).peak_mib for _ in range(2))
        costs = [run(plan_command(folder, many)) for _ in range(repeats)]
        seconds, peak = Measured([cost.seconds for cost in costs]), max(cost.peak_mib for cost in costs)
        table.append(
            Row(
                f"plan {rows:,} rows of {ending}",
                "under 60 s and 1 GiB; memory does not grow with the rows",
                f"{seconds.text('s', 1)}, peak {peak:.0f} MiB; {rows // 10:,} rows: {small:.0f} MiB",
                seconds.median < PLAN_SECONDS and peak < PLAN_MIB and peak < small + GROWTH_MIB,
            )
        )
    return table


def finished_run(folder: Path, images: int) -> RunDir:
    """A run folder as if all pictures had been made, without the pictures: what `status` reads."""
    run(plan_command(folder, prompts_file(folder, images, ".txt"), "name=finished", "images_per_shard=1000"))
    found = RunDir(next(folder.glob("finished-*")))
    for index in range(found.info().plan.shards):
        shard = found.shard(index)
        attendant = attend(found.workers, {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index)}, f"n/{index}")
        book = RecordBook(found.records_path(index), shard, worker=f"n/{index}", device="rehearsal")
        for image in shard.images:
            book.add(
                ImageRecord(
                    index=image.index,
                    request_id=image.request_id,
                    file=image.file,
                    sha256="0" * 64,
                    prompt=image.request.prompt,
                    seed=image.request.seed,
                    flagged=False,
                    seconds=1.0,
                    device="rehearsal",
                    worker=f"n/{index}",
                )
            )
        book.flush(at_once=True)
        attendant.update(loading=1.0, made=len(shard.images))
        attendant.leave(End.DONE)
    return found


def status(folder: Path, images: int, repeats: int, env: Dict[str, str]) -> Row:
    """`status` of a finished run, and the folders that it lists."""
    finished = finished_run(folder, images)
    seconds = Measured([run(jobs("status", str(finished.path)), env).seconds for _ in range(repeats)])
    said = run([sys.executable, "-c", LISTING, "status", str(finished.path)], env).said
    listed = json.loads(said.splitlines()[-1].partition(" ")[2].replace("'", '"'))
    pictures = [name for name in listed if name.startswith("/samples/")]
    return Row(
        f"`status` of a run of {images:,} images",
        "under 2 s, no recursive listing",
        f"{seconds.text('s')}; lists {len(listed)} folders{': ' if listed else ''}{', '.join(map(shown, listed))}",
        seconds.median < STATUS_SECONDS and not pictures,
    )


def shown(folder: str) -> str:
    return f"`{folder.strip('/') or 'the run folder'}`"


def starting(folder: Path, repeats: int) -> List[Row]:
    """`--help` and `render`, and whether either imports what is heavy."""
    cost = run(plan_command(folder, prompts_file(folder, 2000, ".txt"), "name=rendered", "cluster=scnet-dcu"))
    path = cost.said.splitlines()[-1].split()[-1]
    table = []
    for what, words in (("--help", ["--help"]), ("render", ["render", path])):
        seconds = Measured([run(jobs(*words)).seconds for _ in range(repeats)])
        imported = run([sys.executable, "-X", "importtime", "-m", "jobs", *words]).said
        heavy = sorted(set(HEAVY.findall(imported)))
        table.append(
            Row(
                f"`{what}`",
                "under 0.3 s, no torch",
                f"{seconds.text('s')}; imports {', '.join(heavy) or 'neither torch nor numpy nor Pillow'}",
                seconds.median < START_SECONDS and not heavy,
            )
        )
    return table
