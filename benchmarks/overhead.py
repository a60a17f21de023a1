"""What of a job of 100 pictures is not network time: text, safety, PNG, parameters, files, records, Python.

    python benchmarks/overhead.py [--images N] [--repeats N] [--only JOB ...] [--model NAME] [--json FILE]

Each round is a shard that a worker makes in a run folder, from its first batch to its last record, once as jobs do it,
each batch written while the next is sampled, and once in turn, for comparison. The networks (U-Net, first stage, text
encoder) are timed around their `forward`; the share is what is left of the time. On a CPU what is done behind takes
time from the networks, so seconds a picture are told as well. The job `card` stands for a fast card with 512 px:
networks that sleep for as long as one would take, and decode to a grainy picture, which is work to encode. Status 1
where the share of the rest is over its bar.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - found from any folder
from on_cluster.measure import Measured  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from jobs.config import read_settings  # noqa: E402
from jobs.submit.prepare import Prepared, prepare_run  # noqa: E402
from jobs.worker.behind import Behind  # noqa: E402
from jobs.worker.model import generate_with, load_pipeline  # noqa: E402
from jobs.worker.worker import Generate, Worker, run_shard  # noqa: E402
from ldm.inference.runtime import describe_device  # noqa: E402
from ldm.modules.diffusionmodules.util import rows_like  # noqa: E402

BAR, STRETCH = 0.05, 0.02
BATCH = 4
PER_PICTURE_MS = {"unet": 8.0, "decoder": 20.0, "text": 5.0}  # of a call, about what an H100 takes
WAYS = ("overlapped", "in turn")


@dataclass(frozen=True)
class Job:
    """What is measured: `words` set the job, `prepare` changes the model that was loaded."""

    words: Sequence[str]
    prepare: Callable[[Any], None]


@dataclass(frozen=True)
class Round:
    """Seconds of one job, and how many of them some network was at work."""

    seconds: float
    network: float

    @property
    def share(self) -> float:
        """Of what is not network time, in per cent."""
        return 100 * (1 - self.network / self.seconds)


Rounds = Dict[str, List[Round]]  # by way


def main() -> int:
    options = parse_options()
    wanted = options.only or JOBS
    table = {name: measure(job, options) for name, job in JOBS.items() if name in wanted}  # the one that sleeps last
    print("\n".join(markdown(table, options.images)))
    if options.json:
        options.json.write_text(json.dumps(plain(table, options.images), indent=1) + "\n", encoding="utf-8")
    return 0 if all(Measured(shares(rounds["overlapped"])).median <= 100 * BAR for rounds in table.values()) else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="of one job (100)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each way (3)")
    parser.add_argument("--only", nargs="+", choices=JOBS, metavar="JOB", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--model", default="emoji-v1", help="of the job `model` (emoji-v1)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings, such as steps=20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    return parser.parse_args()


def measure(job: Job, options: argparse.Namespace) -> Rounds:
    """Rounds of both ways in turns, behind a batch that warms up."""
    shards = len(WAYS) * options.repeats
    with tempfile.TemporaryDirectory(prefix="sdbatch-overhead-") as name:
        words = [f"model={options.model}", f"batch_size={BATCH}", *job.words, *options.set]
        prepared = plan(Path(name), shards * options.images, [*words, f"images_per_shard={options.images}"])
        pipeline = load_pipeline(prepared.info, prepared.info.settings.spec)
        job.prepare(pipeline.model)
        clock = NetworkClock(pipeline.model)
        generate = generate_with(pipeline, prepared.info)
        generate([image.request for image in prepared.run.shard(0).images[:BATCH]])
        rounds: Rounds = {way: [] for way in WAYS}
        for shard in range(shards):
            way = WAYS[shard % len(WAYS)]
            rounds[way].append(one_round(prepared, shard, generate, clock, way))
            print(f"{way}: {rounds[way][-1].seconds:.1f} s, {rounds[way][-1].share:.1f} %", file=sys.stderr, flush=True)
        return rounds


def plan(folder: Path, images: int, words: Sequence[str]) -> Prepared:
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"a red apple on a blue ground, number {n}\n" for n in range(images)), encoding="utf-8")
    return prepare_run(prompts, read_settings([*words, "safety=off", f"outputs={folder / 'outputs'}"]))


def one_round(prepared: Prepared, shard: int, generate: Generate, clock: NetworkClock, way: str) -> Round:
    """A shard from its first batch to its last record."""
    planned = prepared.run.shard(shard)
    worker = Worker("benchmark", describe_device(clock.device), BATCH)
    behind = Behind if way == "overlapped" else InTurn
    clock.seconds = 0.0
    with mock.patch("jobs.worker.worker.Behind", behind):
        started = time.perf_counter()
        summary = run_shard(planned, prepared.run, generate, worker)
        seconds = time.perf_counter() - started
    if summary.made != len(planned.images):
        raise RuntimeError(f"{summary.made} of {len(planned.images)} pictures were made")
    return Round(seconds, clock.seconds)


class InTurn:
    """In the place of what is done behind: it is done at once."""

    def submit(self, do: Callable[[], object]) -> None:
        do()

    def settle(self) -> None:
        """There is nothing to wait for."""

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *_: object) -> None:
        """Nor here."""


class NetworkClock:
    """Adds up the seconds that the networks of a model take, until a card has done what it was asked."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self.device = model.device
        self._begun = 0.0
        first_stage = model.first_stage_model
        convolutions = (first_stage.quant_conv, first_stage.post_quant_conv)
        text = model.cond_stage_model.transformer
        for network in (model.model.diffusion_model, first_stage.encoder, first_stage.decoder, text, *convolutions):
            network.register_forward_pre_hook(self._begin)
            network.register_forward_hook(self._end)

    def _begin(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        wait_for(inputs[0])
        self._begun = time.perf_counter()

    def _end(self, module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
        wait_for(output)
        self.seconds += time.perf_counter() - self._begun


def wait_for(tensor: Tensor) -> None:
    """Until a card has come to this tensor: reading one number of it needs all that was asked before."""
    if tensor.device.type != "cpu":
        tensor.flatten()[:1].tolist()


def leave(model: Any) -> None:
    """The model as it was loaded."""


def put_to_sleep(model: Any) -> None:
    """Put networks that only take their time in the place of the model's.

    One thread computes what is left of sampling, which a card would do: threads that wait for each other would be
    measured instead.
    """
    torch.set_num_threads(1)
    model.model.diffusion_model = SleepingUNet(PER_PICTURE_MS["unet"] / 2)  # with and without the prompt
    # The first stage asks its decoder how large the maps will be, so that one stays.
    model.first_stage_model.decoder.forward = SleepingDecoder(model.first_stage_model.factor).forward
    model.cond_stage_model.transformer = SleepingText(model.cond_stage_model.transformer)


class Sleeping(nn.Module):
    """Takes its milliseconds for each of a batch, as a card does, without the processor, and gives back its input."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        time.sleep(self.milliseconds / 1000 * x.shape[0])
        return x


class SleepingUNet(Sleeping):
    """Gives back its input for each of its texts."""

    def forward(self, x: Tensor, *_: Any, context: Tensor, **__: Any) -> Tensor:
        return super().forward(rows_like(x, context))


class SleepingDecoder(Sleeping):
    """Decodes everything to a picture with about as much grain as a photograph."""

    def __init__(self, factor: int) -> None:
        super().__init__(PER_PICTURE_MS["decoder"])
        self.factor = factor
        self.picture: Tensor = torch.zeros(())

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        shape = (x.shape[-2] * self.factor, x.shape[-1] * self.factor)
        if self.picture.shape[-2:] != shape:
            generator = torch.Generator().manual_seed(0)
            coarse = torch.randn(1, 3, shape[0] // 32, shape[1] // 32, generator=generator)
            smooth = nn.functional.interpolate(coarse, shape, mode="bicubic", align_corners=False)
            picture = 0.4 * smooth + 0.03 * torch.randn(1, 3, *shape, generator=generator)
            self.picture = picture.contiguous(memory_format=torch.channels_last)  # as a decoder's convolutions leave it
        super().forward(x)
        return self.picture


class SleepingText(Sleeping):
    """Encodes every text alike."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__(PER_PICTURE_MS["text"])
        self.text_model = transformer.text_model
        self.encoded: Tensor = transformer(torch.zeros(1, 77, dtype=torch.int64)).detach()

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        super().forward(x)
        return self.encoded


# A quarter of a second a picture: PLMS asks the U-Net once more than it takes steps.
JOBS = {
    "model": Job((), leave),
    "card": Job(("device=cpu", "height=512", "width=512", "steps=25"), put_to_sleep),
}


def shares(rounds: Sequence[Round]) -> List[float]:
    return [each.share for each in rounds]


def markdown(table: Dict[str, Rounds], images: int) -> List[str]:
    """The rounds as a table."""
    lines = ["| job | way | seconds a picture | not network time |", "| --- | --- | --- | --- |"]
    for name, rounds in table.items():
        for way in WAYS:
            seconds = Measured([each.seconds / images for each in rounds[way]])
            share = Measured(shares(rounds[way]))
            lines.append(f"| {name} | {way} | {seconds.text('s', 3)} | {share.text('%', 1)} |")
    return lines


def plain(table: Dict[str, Rounds], images: int) -> Dict[str, Any]:
    """The rounds as JSON: of each job and way the seconds of every round, and of the networks in it."""
    found = {name: {way: [vars(each) for each in rounds[way]] for way in WAYS} for name, rounds in table.items()}
    return {"images": images, "batch_size": BATCH, "bar": BAR, "stretch": STRETCH, "jobs": found}


if __name__ == "__main__":
    sys.exit(main())
