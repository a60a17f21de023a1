"""Whether every picture appears once and whole, whatever happens to the cluster while the run is made.

    python benchmarks/chaos.py [--seed N] [--minutes M] [--events N] [--images N] [--nodes N] [--model NAME]
                               [--steps N] [--reference FOLDER] [--json FILE]

Makes the pictures undisturbed on this machine, then again on a private Slurm cluster that it starts, where for the
given time workers are killed and stopped, nodes crash, lose their daemons or are taken down, jobs are requeued and
cancelled, and a user submits, resumes and cancels, at random from the seed. A run that is whole before the time is over
is followed by another. In the end the cluster is healed, the runs are resumed until nothing is missing, and judged from
their files: status 1 on any fault. --reference keeps the undisturbed run for the next seed. Interrupting it is safe.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.integration.login_node import LoginNode  # noqa: E402 - found from any working directory, without installing
from tests.integration.ordeal import Diary, Ordeal  # noqa: E402
from tests.slurm_lab.accidents import Accidents  # noqa: E402
from tests.slurm_lab.cluster import SlurmLab  # noqa: E402

STEPS = {"rehearsal": 1000}  # a second a picture
USUAL_STEPS = 8  # with emoji-v1, 2,000 pictures last for longer than a quarter of an hour on two cores if disturbed
REFERENCE_PROCESSES = {"rehearsal": 16}  # it only sleeps
PAUSE = 1.0, 8.0  # seconds between two events: a model takes some to load, and should come to something
SHOWN = 20
THINGS = "lion", "cat", "dog", "owl", "house", "tree", "car", "fish", "rose", "moon", "apple", "clock"
COLOURS = "blue", "red", "green", "yellow", "white", "black", "orange", "purple"
# Shards of some seconds, and one task a node, so that every node has work.
WORK = "batch_size=4", "images_per_shard=25", "task_min=1"
CLUSTER = "cluster=scnet-dcu", "cluster.cpus_per_card=1", "cluster.directives.exclusive="


def main() -> int:
    options = parse_options()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the model, in every process: the machine has few cores
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="sdbatch-chaos-"))
    print(f"runs and diary are in {folder}", flush=True)
    prompts = write_prompts(folder, options.images)
    steps = options.steps or STEPS.get(options.model, USUAL_STEPS)
    work = (f"model={options.model}", f"steps={steps}", "device=cpu", *WORK)
    undisturbed = make_undisturbed(prompts, options.reference or folder, options.model, work)
    with SlurmLab(accounting=False, dcu_nodes=options.nodes) as lab:
        result = torment(LoginNode(lab, folder), prompts, work, undisturbed, options)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if result["faults"]:
        print(f"kept for study: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of what happens (1)")
    parser.add_argument("--minutes", type=float, default=15.0, help="how long it happens (15)")
    parser.add_argument("--events", type=int, default=0, help="go on for longer until so many things have happened (0)")
    parser.add_argument("--images", type=int, default=2000, help="pictures of a run (2000)")
    parser.add_argument("--nodes", type=int, default=4, help="nodes of the cluster (4)")
    parser.add_argument("--model", default="emoji-v1", help="any model that needs no card (emoji-v1)")
    parser.add_argument("--steps", type=int, help="sampling steps (8; 1000 of the rehearsal, which is a second)")
    parser.add_argument("--reference", type=Path, help="folder of the undisturbed run, made if it is not there")
    parser.add_argument("--json", type=Path, help="write what was found here too")
    return parser.parse_args()


def write_prompts(folder: Path, images: int) -> Path:
    """A prompts file: things on grounds of all colours, over and over; the seeds differ."""
    pairs = itertools.islice(itertools.cycle(itertools.product(THINGS, COLOURS)), images)
    path = folder / "chaos.txt"
    path.write_text("".join(f"a {thing} on a {colour} background\n" for thing, colour in pairs), encoding="utf-8")
    return path


def make_undisturbed(prompts: Path, folder: Path, model: str, work: Sequence[str]) -> Path:
    """The run that nothing befalls, made by processes on this machine; one that is there is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = f"cards={REFERENCE_PROCESSES.get(model, os.cpu_count() or 1)}"
    words = ["submit", str(prompts), f"outputs={folder}", "name=undisturbed", "cluster=local", cards, *work]
    started = time.monotonic()
    with (prompts.parent / "undisturbed.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, "-m", "jobs", *words], cwd=ROOT, stdout=log, stderr=log)
        with ended(process):
            status = process.wait()
        log.seek(0)
        said = log.read()
    if status:
        raise SystemExit(f"the undisturbed run failed:\n{said}")
    print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
    run = next(line for line in said.splitlines() if line.startswith("pictures:")).split(maxsplit=1)[1]
    return Path(run).absolute().parent


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any]) -> Any:
    """Does not leave a process behind that is still at work when the block is interrupted."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def torment(
    login: LoginNode, prompts: Path, work: Sequence[str], undisturbed: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything that happens on the cluster, and what is found afterwards."""
    dice, diary = random.Random(options.seed), Diary(login.folder / "diary.txt")
    accidents = Accidents(login.lab, dice, diary)
    ordeals: list[Ordeal] = []
    started = time.monotonic()
    whole = True
    while time.monotonic() < started + 60 * options.minutes or sum(accidents.counts.values()) < options.events:
        if whole:
            ordeals.append(Ordeal(login, accidents, dice, diary))
            ordeals[-1].begin(prompts, f"name=chaos-{len(ordeals)}", *work, *CLUSTER)
        left = started + 60 * options.minutes - time.monotonic()
        whole = ordeals[-1].suffer(PAUSE, seconds=min(60.0, max(left, PAUSE[1])))
        print(f"{time.monotonic() - started:5.0f} s: run {len(ordeals)}: {ordeals[-1].progress()}", flush=True)
    healing = time.monotonic()
    rounds = [ordeal.heal() for ordeal in ordeals]
    print(f"{time.monotonic() - started:5.0f} s: healed, resumed {rounds} times", flush=True)
    return {
        "date": datetime.date.today().isoformat(),
        **{name: getattr(options, name) for name in ("seed", "minutes", "images", "nodes", "model")},
        "work": list(work),
        "runs": [str(ordeal.run) for ordeal in ordeals],
        "seconds": {"disturbed": round(healing - started), "healing": round(time.monotonic() - healing)},
        "events": dict(accidents.counts.most_common()),
        "refused": [complaint for ordeal in ordeals for complaint in ordeal.complaints],
        "faults": [f"{ordeal.run.name}: {fault}" for ordeal in ordeals for fault in ordeal.verdict(undisturbed)],
    }


def show(result: dict[str, Any]) -> None:
    print(f"{'what happened':28} {'times':>5}")
    for event, times in result["events"].items():
        print(f"{event:28} {times:5}")
    print(f"{'in all':28} {sum(result['events'].values()):5}")
    for complaint in sorted(set(result["refused"])):
        print(f"refused, {result['refused'].count(complaint)} times: {complaint}")
    runs, faults = len(result["runs"]), result["faults"]
    print(f"seed {result['seed']}, {result['seconds']['disturbed']} s: {runs} runs of {result['images']} pictures:")
    if faults:
        print(f"{len(faults)} FAULTS", *faults[:SHOWN], sep="\n  ")
    else:
        print("each picture there once, byte for byte as undisturbed; no partial file, no record lost or double")


if __name__ == "__main__":
    sys.exit(main())
