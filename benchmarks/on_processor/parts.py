"""What is measured: servers asked in turns, processes started in turns, and nothing computing beside the one measured.

A part gives series, each as soon as it is there: by a name such as `unet bfloat16 256`, for each way the numbers of all
rounds, in the order of the rounds, so that numbers of one round were taken right after each other and can be divided.
Seconds, if nothing else is said.
"""

from __future__ import annotations

import array
import functools
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from on_cluster.measure import ROOT, Cost, processor, run

from on_processor import levers
from on_processor.talk import Server, ServerError, servers
from on_processor.task import PROMPT, PROMPTS, SEED, SIZE, STEPS
from on_processor.turns import Ask, Patience, alternate

SMALL_CONFIG = ROOT / "configs" / "emoji" / "v1.yaml"
SMALL_WEIGHTS = ROOT / "models" / "emoji-v1" / "model.safetensors"
TOKENIZER = ROOT / "models" / "emoji-v1" / "tokenizer"
SCRIPTS = ROOT / "benchmarks" / "on_processor"
PEERS = ROOT / "benchmarks" / "peers"
SIZES = (SIZE, 2 * SIZE)
SMALL_SIZE = 64
LARGE_SIZE, QUICK_LARGE_SIZE = 2048, 512
ONE_PICTURE = ("--n_samples", "1", "--n_iter", "1", "--skip_grid", "--safety-checker", "off")
PRECISIONS = {"bfloat16": "autocast", "float32": "full"}
TASKS = {
    "unet-bfloat16": (("unet", SIZE), ("unet", 2 * SIZE)),
    "unet-float32": (("unet", SIZE), ("unet", 2 * SIZE)),
    "vae-bfloat16": (("vae", SIZE), ("vae", 2 * SIZE)),
    "vae-float32": (("vae", SIZE),),
    "text-bfloat16": (("text",),),
    "text-float32": (("text",),),
}
SMALL_TASKS = (("unet", SMALL_SIZE), ("vae", SMALL_SIZE), ("text",))

Series = Dict[str, Dict[str, List[float]]]
Task = Tuple[object, ...]  # a network, and the size of the picture where it depends on it


INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # as Linux names them
NO_BFLOAT16 = "no fast bfloat16"
IMPORT_TORCH = (
    "import sys; sys.path.insert(0, 'benchmarks'); import torch; from on_processor import talk; print(talk.moment())"
)
VERSIONS = "import diffusers as d, torch; print('diffusers', d.__version__, 'with torch', torch.__version__)"


class NotHere(RuntimeError):
    """What was to be measured cannot be on this machine; the message says why."""


@dataclass(frozen=True)
class Bench:
    """The model, where its weights lie, the Python that has diffusers (None: left out), how often all is measured, and
    for how long in all it may wait for a quiet machine.
    """

    config: Path
    folder: Path
    peer: Optional[Path]
    rounds: int
    patience: Patience

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs.safetensors"

    @property
    def diffusers(self) -> Path:
        """The same weights as diffusers keeps them."""
        return self.folder / "diffusers"

    def prepare(self) -> None:
        """Make the files that are not there yet."""
        sizes = [str(size) for size in SIZES]
        run((sys.executable, str(SCRIPTS / "weights.py"), str(self.config), str(self.folder), *sizes))
        small = (str(SMALL_CONFIG), str(self.folder / "small"), str(SMALL_SIZE))
        run((sys.executable, str(SCRIPTS / "weights.py"), *small))
        index = self.diffusers / "model_index.json"  # written last
        stale = index.exists() and index.stat().st_mtime < self.model.stat().st_mtime
        if self.peer and (stale or not index.exists()):
            convert = (str(self.config), str(self.model), str(TOKENIZER), str(self.diffusers))
            run((str(self.peer), str(PEERS / "diffusers_folder.py"), *convert))

    @functools.cached_property
    def said(self) -> Dict[str, Any]:
        """What ours says of itself on this machine: its torch, its threads, and the dtype that it computes in."""
        server = self._started("autocast", small=True)
        said: Dict[str, Any] = server.ask("about")
        server.close()
        return said

    @property
    def dtypes(self) -> Tuple[str, ...]:
        """What is measured here: the dtype that ours computes in of itself, and float32."""
        return tuple(dict.fromkeys((self.said["dtype"], "float32")))

    def ours(self, dtype: str, moved: Sequence[str] = (), *, small: bool = False) -> Server:
        """A server of ours; NotHere where the product would not compute in that dtype."""
        if dtype not in self.dtypes:
            raise NotHere(f"this processor computes in {self.dtypes[0]}: {dtype} would be slower")
        return self._started(PRECISIONS[dtype], moved, small=small)

    def _started(self, precision: str, moved: Sequence[str] = (), *, small: bool) -> Server:
        inputs = self.folder / "small" / "inputs.safetensors" if small else self.inputs
        files = (SMALL_CONFIG, SMALL_WEIGHTS, inputs) if small else (self.config, self.model, inputs)
        command = [sys.executable, str(SCRIPTS / "our_server.py"), *map(str, files)]
        return Server([*command, "--precision", precision, "--move", *moved], levers.environment(moved))

    def plain(self, dtype: str, *, small: bool = False) -> Server:
        """A server of ours with all levers off."""
        return self.ours(dtype, list(levers.IN_USE), small=small)

    def theirs(self, dtype: str, *words: str) -> Server:
        """A server of diffusers, channels last in bfloat16, which is its faster way there."""
        last = ["--channels-last"] if dtype == "bfloat16" else []
        command = [str(self.peer), str(PEERS / "diffusers_server.py"), str(self.diffusers), str(self.inputs)]
        return Server([*command, "--dtype", dtype, *last, *words])


def about(bench: Bench) -> List[str]:
    """What is compared, and what it runs on."""
    flags = re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)[:1]
    instructions = [name for name in INSTRUCTIONS if any(name in each.split() for each in flags)]
    theirs = [run((str(bench.peer), "-W", "ignore", "-c", VERSIONS)).said.strip()] if bench.peer else []
    without = "" if "bfloat16" in bench.dtypes else NO_BFLOAT16
    ours = [processor(), " ".join(instructions), without]
    ours += [f"{bench.said['threads']} threads", f"torch {bench.said['torch']}"]
    return [word for word in (*ours, *theirs) if word]


def forwards(bench: Bench, name: str) -> Iterator[Series]:
    """A network alone at each size, our way, our plain way and diffusers', and what the processor can do, in turns."""
    dtype = name.split("-")[1]
    starts: Dict[str, Callable[[], Server]] = {
        "ours": partial(bench.ours, dtype),
        "plain": partial(bench.plain, dtype),
    }
    if bench.peer:
        starts["diffusers"] = partial(bench.theirs, dtype)
    with servers(starts) as started:
        for task in TASKS[name]:
            asks = {way: _timer(server, task) for way, server in started.items()}
            limit: Dict[str, Ask] = {"limit": lambda: float(started["ours"].ask("limit"))}  # GFLOP/s
            yield {_name(task, dtype): alternate({**limit, **asks}, bench.rounds, bench.patience)}


def compiled(bench: Bench) -> Iterator[Series]:
    """The U-Net against diffusers with torch.compile and frozen weights, which takes a minute or two to compile."""
    dtype = bench.dtypes[0]
    starts = {"ours": partial(bench.ours, dtype), "diffusers": partial(bench.theirs, dtype, "--compile")}
    if not bench.peer:
        raise NotHere("diffusers is not here")
    with servers(starts) as started:
        asks = {way: _timer(server, ("unet", SIZE)) for way, server in started.items()}
        yield {f"compiled unet {dtype} {SIZE}": alternate(asks, bench.rounds, bench.patience)}


def small(bench: Bench, dtypes: Sequence[str] = ()) -> Iterator[Series]:
    """The networks of the model that ships, our way and the plain way, in these dtypes or in all that are measured."""
    for dtype in dtypes or bench.dtypes:
        starts = {"ours": partial(bench.ours, dtype, small=True), "plain": partial(bench.plain, dtype, small=True)}
        with servers(starts) as started:
            for task in SMALL_TASKS:
                asks = {way: _timer(server, task) for way, server in started.items()}
                yield {f"small {_name(task, dtype)}": alternate(asks, bench.rounds, bench.patience)}


def moved(bench: Bench, name: str) -> Iterator[Series]:
    """The U-Net without a lever that is in use, or with one that is not: in turns with ours as it is."""
    for dtype in [each for each in levers.LEVERS[name].dtypes if each in bench.dtypes]:
        starts = {"ours": partial(bench.ours, dtype), "moved": partial(bench.ours, dtype, [name])}
        if levers.LEVERS[name].first_call:
            first_calls = {way: partial(_first_call, start) for way, start in starts.items()}
            yield {f"lever {name} {dtype}": alternate(first_calls, bench.rounds, bench.patience)}
            continue
        with servers(starts) as started:
            asks = {way: _timer(server, ("unet", SIZE)) for way, server in started.items()}
            for ask in asks.values():  # the second call has what the first recalls: torch.compile compiles for each
                ask()
            yield {f"lever {name} {dtype}": alternate(asks, bench.rounds, bench.patience)}


def _first_call(start: Callable[[], Server]) -> float:
    with servers({"new": start}) as started:
        return _timer(started["new"], ("unet", SIZE))()


def whole(bench: Bench) -> Iterator[Series]:
    """Whole processes from start to file, a picture of 256 px in 10 PLMS steps; seconds, of the clock and of the
    processor, and the most memory of each in MiB.
    """
    outdir = bench.folder / "pictures"
    outdir.mkdir(exist_ok=True)
    commands = {"ours": ours_txt2img(bench.config, bench.model, outdir)}
    if bench.peer:
        script = str(PEERS / "diffusers_txt2img.py")
        files = (str(bench.diffusers), str(outdir / "diffusers.png"))
        commands["diffusers"] = (str(bench.peer), script, *files, "--dtype", bench.dtypes[0])
    costs: Dict[str, List[Cost]] = {way: [] for way in commands}

    def ask(way: str) -> float:
        costs[way].append(run(commands[way]))
        return costs[way][-1].seconds

    seconds = alternate({way: partial(ask, way) for way in commands}, bench.rounds, bench.patience)
    kept = {way: [cost for cost in found if cost.seconds in seconds[way]] for way, found in costs.items()}
    yield {
        "whole": seconds,
        "whole processor": {way: [cost.cpu for cost in found] for way, found in kept.items()},
        "whole MiB": {way: [cost.peak_mib for cost in found] for way, found in kept.items()},
    }


def start(bench: Bench) -> Iterator[Series]:
    """Of a process, to the U-Net's first call and to that call's end, files cached; and the most memory until then."""
    first_call = (sys.executable, str(SCRIPTS / "first_call.py"))
    outdir = bench.folder / "pictures"
    commands = {
        way: (*first_call, *ours_txt2img(bench.config, file, outdir)[1:])
        for way, file in (("ours", bench.model), ("ours .ckpt", bench.model.with_suffix(".ckpt")))
    }
    if bench.peer:
        script = str(PEERS / "diffusers_txt2img.py")
        files = (str(bench.diffusers), "unused.png")
        commands["diffusers"] = (str(bench.peer), script, *files, "--dtype", bench.dtypes[0], "--first-call")
    commands["torch alone"] = (sys.executable, "-c", IMPORT_TORCH)
    moments: Dict[str, Dict[float, List[float]]] = {way: {} for way in commands}

    def ask(way: str) -> float:
        started = time.perf_counter()
        said = subprocess.run(
            commands[way], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        ).stdout
        at, *others = [float(word) for word in said.splitlines()[-1].split()]
        moments[way][at - started] = [others[0], *(each - started for each in others[1:2]), *others[2:]]
        return at - started

    seconds = alternate({way: partial(ask, way) for way in commands}, bench.rounds, bench.patience)
    kept = {way: [moments[way][each] for each in seconds[way]] for way in commands}
    yield {"start": seconds, "start MiB": {way: [peak for peak, *_ in each] for way, each in kept.items()}}
    of_calls = {way: each for way, each in kept.items() if len(each[0]) > 1}
    yield {
        "first call": {way: [done for _, done, _ in each] for way, each in of_calls.items()},
        "first call MiB": {way: [peak for _, _, peak in each] for way, each in of_calls.items()},
    }


def overhead(bench: Bench) -> Iterator[Series]:
    """Of a job of 100 pictures of the small model, the share of its time that is not in its networks."""
    file = bench.folder / "overhead.json"
    command = (sys.executable, str(ROOT / "benchmarks" / "overhead.py"), f"--json={file}")
    file.unlink(missing_ok=True)
    subprocess.run((*command, f"--repeats={bench.rounds}"), cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if not file.exists():  # its status tells of the bar
        raise ServerError("benchmarks/overhead.py ended without a result")
    for name, ways in json.loads(file.read_text(encoding="utf-8"))["jobs"].items():
        yield {
            f"overhead {name}": {
                way: [1 - each["network"] / each["seconds"] for each in rounds] for way, rounds in ways.items()
            }
        }


def large(bench: Bench, size: int) -> Iterator[Series]:
    """One decoding of a picture of `size` px at once and one in strips, a process each.

    Seconds of the processor, as one round on a busy machine is no measure; and the most memory of the decoding, in MiB.
    """
    decode = (sys.executable, str(ROOT / "benchmarks" / "decode.py"), "--dtype", bench.dtypes[0])
    said = run((*decode, "--sizes", str(size), "--config", str(bench.config), "--json")).said
    found = {each["way"]: each for each in json.loads(said.splitlines()[-1])}
    for name, number in (("large", "processor_s"), ("large MiB", "peak_mib")):
        yield {f"{name} {size}": {way: [each[number]] for way, each in found.items()}}


def ours_txt2img(config: Path, weights: Path, outdir: Path) -> Tuple[str, ...]:
    """The command line of one picture."""
    files = ("--config", str(config), "--ckpt", str(weights), "--clip", str(TOKENIZER), "--outdir", str(outdir))
    picture = ("--plms", "--ddim_steps", str(STEPS), "--H", str(SIZE), "--W", str(SIZE), "--seed", str(SEED))
    script = (sys.executable, str(ROOT / "scripts" / "txt2img.py"))
    return (*script, "--prompt", PROMPT, *files, *picture, *ONE_PICTURE)


def accuracy(bench: Bench) -> Iterator[Series]:
    """How far bfloat16 is from float32, ours and diffusers', and how far ours is from diffusers' in float32.

    Relative: the length of the difference over that of what it is measured against. Of whole runs of PLMS, one for each
    prompt: `sample worst` is after the step at which it is largest, `sample end` after the last.
    """
    if not bench.peer and "bfloat16" not in bench.dtypes:
        raise NotHere("float32 alone has nothing to be compared with")
    outputs = bench.folder / "outputs"
    outputs.mkdir(exist_ok=True)
    written: Dict[Tuple[str, str], Dict[str, Sequence[float]]] = {}
    ways: List[str] = ["ours", "diffusers"] if bench.peer else ["ours"]
    for way in ways:
        for dtype in bench.dtypes:
            server = bench.ours(dtype) if way == "ours" else bench.theirs(dtype)
            written[way, dtype] = _outputs(server, outputs / f"{way}-{dtype}")
            server.close()
    yield _differences(written, ways)


def _outputs(server: Server, stem: Path) -> Dict[str, Sequence[float]]:
    found = {}
    samples = [("sample", SIZE, STEPS, number) for number in range(len(PROMPTS))]
    for name, *words in (("unet", SIZE), ("unet", 2 * SIZE), ("vae", SIZE), ("text",), *samples):
        file = stem.with_name(f"{stem.name}-{name}.raw")
        server.ask("write", name, str(file), *words)
        found[_name((name, *words))] = floats(file)
    return found


def _differences(written: Mapping[Tuple[str, str], Dict[str, Sequence[float]]], ways: Sequence[str]) -> Series:
    pairs = {way: ((way, "bfloat16"), (way, "float32")) for way in ways if (way, "bfloat16") in written}
    if len(ways) > 1:
        pairs["between"] = (("ours", "float32"), ("diffusers", "float32"))
    series: Series = {}
    for name in next(iter(written.values())):
        for way, (one, other) in pairs.items():
            value, reference = written[one][name], written[other][name]
            if name.startswith("sample"):
                steps = [difference(*step) for step in zip(_steps(value), _steps(reference))]
                series.setdefault("accuracy sample worst", {}).setdefault(way, []).append(max(steps))
                series.setdefault("accuracy sample end", {}).setdefault(way, []).append(steps[-1])
            else:
                series.setdefault(f"accuracy {name}", {})[way] = [difference(value, reference)]
    return series


def _steps(values: Sequence[float]) -> List[Sequence[float]]:
    each = len(values) // STEPS
    return [values[i * each : (i + 1) * each] for i in range(STEPS)]


def floats(file: Path) -> Sequence[float]:
    """The float32 numbers of a file."""
    found = array.array("f")
    found.frombytes(file.read_bytes())
    return found


def difference(value: Sequence[float], reference: Sequence[float]) -> float:
    """The length of value - reference over the length of reference; ValueError where they do not belong together."""
    if len(value) != len(reference):
        raise ValueError(f"{len(value)} numbers cannot be compared with {len(reference)}")
    apart = math.fsum((one - other) ** 2 for one, other in zip(value, reference))
    return math.sqrt(apart / math.fsum(other**2 for other in reference))


def _timer(server: Server, task: Task) -> Ask:
    return lambda: float(server.ask("time", *task))


def _name(task: Task, *more: str) -> str:
    return " ".join(str(word) for word in (task[0], *more, *task[1:]))
