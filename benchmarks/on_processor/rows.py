"""The tables of the page, from the series that `parts` has measured; what was not measured says so."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import List, Mapping, Optional, Sequence

from on_cluster.measure import WIDE, Measured, Row

from on_processor import levers
from on_processor.task import STEPS

NOT_MEASURED = "not measured"
ALIKE = 1.05  # two errors of one size differ by as much from chance
HELPS = 0.97  # a ratio below this is taken for a gain
TELLS_NOTHING = 0.3  # the spread of ratios on both sides of 1, over which they are taken for nothing

Found = Mapping[str, Mapping[str, Sequence[float]]]  # as parts.Series


@dataclass(frozen=True)
class Work:
    """One network at one size. `gflop`: operations of a forward; `bar`: the most that ours may take of diffusers'."""

    what: str
    series: str
    bar: Optional[float] = None
    gflop: Optional[float] = None

    @property
    def dtype(self) -> str:
        return next(dtype for dtype in DTYPES if dtype in self.series)


DTYPES = ("bfloat16", "float32")
WORKS = (
    Work("U-Net, bfloat16, 256 px", "unet bfloat16 256", 0.68, 360.2),
    Work("U-Net, bfloat16, 512 px", "unet bfloat16 512", 0.75, 1606.5),
    Work("U-Net, float32, 256 px", "unet float32 256", 0.55, 360.2),
    Work("U-Net, float32, 512 px", "unet float32 512", 0.70, 1606.5),
    Work("VAE decoder, bfloat16, 256 px", "vae bfloat16 256", 1.0, 622.2),
    Work("VAE decoder, bfloat16, 512 px", "vae bfloat16 512", 1.0, 2514.5),
    Work("VAE decoder, float32, 256 px", "vae float32 256", None, 622.2),
    Work("text encoder, bfloat16, one prompt", "text bfloat16"),
    Work("text encoder, float32, one prompt", "text float32"),
)
SMALL_WORKS = tuple(
    Work(f"{what}, {dtype}", f"small {network} {dtype}{size}")
    for dtype in DTYPES
    for what, network, size in (("U-Net", "unet", " 64"), ("VAE decoder", "vae", " 64"), ("text encoder", "text", ""))
)
SMALL_BAR = 1.15
ACCURACIES = (
    ("U-Net, 256 px", "accuracy unet 256"),
    ("U-Net, 512 px", "accuracy unet 512"),
    ("VAE decoder, 256 px", "accuracy vae 256"),
    ("text encoder", "accuracy text"),
    (f"{STEPS} steps of PLMS, the worst step", "accuracy sample worst"),
    (f"{STEPS} steps of PLMS, the end", "accuracy sample end"),
)
WHOLE_BAR, START_SECONDS, CKPT_SECONDS_MORE = 1.8, 3.0, 1.0
MEMORY_GB, CKPT_MEMORY = {"bfloat16": 3.2}, 1.2  # of the first, float32 has no bar
LARGE_SIZE, LESS_MEMORY = 2048, 4.0
WEIGHTS_GB = {"bfloat16": 2.13, "float32": 4.26}
OVERHEAD_BAR = 0.05
OVERHEADS = {"model": "emoji-v1", "card": "512 px with networks that sleep as long as a fast card would take"}


def ratio(series: Mapping[str, Sequence[float]], one: str, other: str) -> Optional[Measured]:
    """One way's numbers over the other's, round by round; None where either was not measured."""
    if not series.get(one) or not series.get(other):
        return None
    return Measured([a / b for a, b in zip(series[one], series[other])])


def share_of_limit(work: Work, series: Mapping[str, Sequence[float]], way: str = "ours") -> Optional[Measured]:
    """The rate of the work over the processor's best of the same round."""
    if work.gflop is None or not series.get(way) or not series.get("limit"):
        return None
    return Measured([work.gflop / seconds / limit for seconds, limit in zip(series[way], series["limit"])])


def forwards(found: Found, dtypes: Sequence[str] = DTYPES) -> List[str]:
    """Each network: ours against diffusers and against the plain way."""
    head = ("", "ours", "diffusers", "ours / diffusers", "bar", "met", "plain", "ours / plain", "of the limit")
    lines = []
    for work in [each for each in WORKS if each.dtype in dtypes]:
        series = found.get(work.series, {})
        against = ratio(series, "ours", "diffusers")
        met = None if against is None or work.bar is None else against.median <= work.bar
        reached = share_of_limit(work, series)
        lines.append(
            (
                *(work.what, _seconds(series.get("ours")), _seconds(series.get("diffusers")), _times(against)),
                *("" if work.bar is None else f"{work.bar:.2f}x", MET[met]),
                *(_seconds(series.get("plain")), _times(ratio(series, "ours", "plain"))),
                "" if work.gflop is None else _percent(reached),
            )
        )
    return table(head, lines)


def limits(found: Found, dtypes: Sequence[str] = DTYPES) -> List[str]:
    """What the processor can do, from all rounds in which something was held against it."""
    lines = []
    for dtype in dtypes:
        all_rounds = [each for work in WORKS if dtype == work.dtype for each in _limit(found, work.series)]
        rate = Measured(all_rounds).text("GFLOP/s", 0) if all_rounds else NOT_MEASURED
        lines.append(f"- {dtype}: {rate}")
    return lines


def processes(found: Found, dtype: str = DTYPES[0]) -> List[Row]:
    """Whole processes that compute in `dtype`, their start and their memory."""
    of_dtype = [*_whole(found, dtype), *_starts(found, dtype), *_memory(found, dtype), *_large(found, dtype)]
    return [*of_dtype, *_overheads(found)]


def small(found: Found, dtypes: Sequence[str] = DTYPES) -> List[str]:
    """The model that ships: ours against the plain way."""
    lines = []
    for work in [each for each in SMALL_WORKS if each.dtype in dtypes]:
        series = found.get(work.series, {})
        against = ratio(series, "ours", "plain")
        met = None if against is None else against.median <= SMALL_BAR
        ours, plain = (_milliseconds(series.get(way)) for way in ("ours", "plain"))
        lines.append((work.what, ours, plain, _times(against), MET[met]))
    return table(("", "ours", "plain", "ours / plain", "met"), lines)


def accuracy(found: Found, dtypes: Sequence[str] = DTYPES) -> List[str]:
    """How far bfloat16 is from float32, and ours from diffusers'."""
    head = ("", "ours, bfloat16 to float32", "diffusers, the same", "met", "ours to diffusers, float32")
    lines = []
    for what, name in ACCURACIES:
        count = max((len(values) for values in found.get(name, {}).values()), default=0)
        what = f"{what}, mean of {count} prompts" if count > 1 else what
        ours, theirs, between = (_mean(found.get(name, {}).get(way)) for way in ("ours", "diffusers", "between"))
        met = None if ours is None or theirs is None else ours <= ALIKE * theirs
        shown = [NOT_MEASURED if value is None else f"{value:.3g}" for value in (ours, theirs, between)]
        lines.append((what, *shown[:2], MET[met], shown[2]))
    if "bfloat16" not in dtypes:
        return table((head[0], head[-1]), [(line[0], line[-1]) for line in lines])
    return table(head, lines)


def lever_table(found: Found, dtypes: Sequence[str] = DTYPES, *, in_use: bool) -> List[str]:
    """What the U-Net takes without each lever that is in use; or with each that is not, as a multiple of ours."""
    lines = []
    for name, lever in (levers.IN_USE if in_use else levers.LEFT_OUT).items():
        for dtype in [each for each in lever.dtypes if each in dtypes]:
            series = found.get(f"lever {name} {dtype}", {})
            lines.append((lever.what, dtype, *(_seconds(series.get(way)) for way in ("ours", "moved"))))
            against = ratio(series, "moved", "ours")
            verdict = "" if against is None else _verdict(against, in_use=in_use)
            lines[-1] += (_times(against), verdict)
    moved = "without it" if in_use else "with it"
    return table(("lever", "", "ours", moved, f"{moved} / ours", "so it"), lines)


def missed(found: Found, dtypes: Sequence[str] = DTYPES) -> List[str]:
    """What did not meet its bar."""
    lines = [*forwards(found, dtypes), *small(found, dtypes), *accuracy(found, dtypes)]
    names = [line.split("|")[1].strip() for line in lines if f"| {MET[False]} |" in line]
    return names + [row.what for row in processes(found, dtypes[0]) if row.met is False]


MET = {True: "yes", False: "**no**", None: ""}


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> List[str]:
    """In Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return [f"| {' | '.join(row)} |" for row in rows]


def _verdict(against: Measured, *, in_use: bool) -> str:
    if against.spread > TELLS_NOTHING and min(against.values) < 1 < max(against.values):
        return "cannot be told"
    if in_use:
        return "helps" if against.median > 1 / HELPS else "does not help here"
    return "would help" if against.median < HELPS else "does not help"


def _whole(found: Found, dtype: str) -> List[Row]:
    texts, ratios = [], []
    for series in (found.get(name, {}) for name in ("whole", "whole processor")):
        faster = ratio(series, "diffusers", "ours")
        ours, theirs = (_seconds(series.get(way)) for way in ("ours", "diffusers"))
        texts.append(f"{ours}, diffusers {theirs}: {_times(faster)} faster" if faster else NOT_MEASURED)
        ratios.append(faster)
    return [
        Row(
            f"`txt2img.py`, 256 px, 10 PLMS steps, one picture, {dtype}, whole process",
            f"{WHOLE_BAR}x faster than a script of diffusers",
            texts[0],
            None if ratios[0] is None else ratios[0].median >= WHOLE_BAR,
        ),
        Row("the same: seconds of the processor", "", texts[1]),
    ]


def _starts(found: Found, dtype: str) -> List[Row]:
    series = found.get("start", {})
    ours, ckpt, theirs = (series.get(way) for way in ("ours", "ours .ckpt", "diffusers"))
    alone = series.get("torch alone")
    beside = (f"; diffusers {_seconds(theirs)}" if theirs else "") + (
        f"; to import torch and no more {_seconds(alone)}" if alone else ""
    )
    rows = [
        Row(
            "start of the process to the U-Net's first call, `.safetensors`, cached",
            f"{START_SECONDS:.0f} s",
            f"{_seconds(ours)}{beside}",
            None if not ours else Measured(ours).median <= START_SECONDS,
        )
    ]
    more = Measured([b - a for a, b in zip(ours, ckpt)]) if ours and ckpt else None
    rows.append(
        Row(
            "the same from `.ckpt`",
            f"within {CKPT_SECONDS_MORE:.0f} s of that",
            # Without the spread, which is no share of a difference.
            NOT_MEASURED
            if more is None
            else f"{_seconds(ckpt)}: {more.median:.2f} s ({min(more.values):.2f} to {max(more.values):.2f}) more",
            None if more is None else more.median <= CKPT_SECONDS_MORE,
        )
    )
    return [*rows, *_first_calls(found, dtype)]


def _first_calls(found: Found, dtype: str) -> List[Row]:
    """Ours reads the U-Net's weights within the call, so what it takes until then says nothing of them."""
    done, memory = found.get("first call", {}), found.get("start MiB", {})
    ours, theirs = (done.get(way) for way in ("ours", "diffusers"))
    beside = f"; diffusers {_seconds(theirs)}" if theirs else ""
    peak, of_torch = (_gigabytes(memory.get(way)) for way in ("ours .ckpt", "torch alone"))
    behind = _gigabytes(found.get("first call MiB", {}).get("ours .ckpt"))
    words = f"; until that call was done {behind.text('GB')}" if behind else ""
    words += f"; torch imported and no more {of_torch.text('GB')}" if of_torch else ""
    most = CKPT_MEMORY * WEIGHTS_GB[dtype]
    return [
        Row(
            "peak memory until then, from `.ckpt`",
            f"{CKPT_MEMORY}x the weights, {most:.2f} GB",
            NOT_MEASURED if peak is None else peak.text("GB") + words,
            None if peak is None else peak.median <= most,
        ),
        Row("start of the process to the end of that call, `.safetensors`", "", f"{_seconds(ours)}{beside}"),
    ]


def _memory(found: Found, dtype: str) -> List[Row]:
    series = found.get("whole MiB", {})
    ours, theirs = (_gigabytes(series.get(way)) for way in ("ours", "diffusers"))
    beside = f"; diffusers {theirs.text('GB')}" if theirs else ""
    text = NOT_MEASURED if ours is None else ours.text("GB") + beside
    most = MEMORY_GB.get(dtype)
    met = None if ours is None or most is None else ours.median <= most
    return [Row("peak memory of that whole process", f"{most} GB" if most else "", text, met)]


def _overheads(found: Found) -> List[Row]:
    rows = []
    for name, what in OVERHEADS.items():
        series = found.get(f"overhead {name}", {})
        share = Measured(series["overlapped"]) if series.get("overlapped") else None
        before = f"; written in turn {_percent(Measured(series['in turn']), 1)}" if series.get("in turn") else ""
        rows.append(
            Row(
                f"share of a job of 100 pictures that is not network time, {what}",
                f"{OVERHEAD_BAR:.0%}",
                NOT_MEASURED if share is None else _percent(share, 1) + before,
                None if share is None else share.median <= OVERHEAD_BAR,
            )
        )
    return rows


def _large(found: Found, dtype: str) -> List[Row]:
    memory, seconds = (found.get(f"{name} {LARGE_SIZE}", {}) for name in ("large MiB", "large"))
    less, longer = ratio(memory, "plain", "strips"), ratio(seconds, "strips", "plain")
    peaks, times = (
        [Measured(series[way]).text(unit, 0) for way in ("strips", "plain")] if series else []
        for series, unit in ((memory, "MiB"), (seconds, "s"))
    )
    return [
        Row(
            f"decoding a picture of {LARGE_SIZE} px in strips, {dtype}: memory beside the weights",
            f"{LESS_MEMORY:.0f}x less than at once",
            NOT_MEASURED if less is None else f"{peaks[0]}, at once {peaks[1]}: {_times(less)} less",
            None if less is None else less.median >= LESS_MEMORY,
        ),
        Row(
            "the same: seconds of the processor",
            "",
            NOT_MEASURED if longer is None else f"{times[0]}, at once {times[1]}: {_times(longer)}",
        ),
    ]


def _mean(values: Optional[Sequence[float]]) -> Optional[float]:
    return statistics.mean(values) if values else None


def _limit(found: Found, name: str) -> Sequence[float]:
    return found.get(name, {}).get("limit", ())


def _gigabytes(mebibytes: Optional[Sequence[float]]) -> Optional[Measured]:
    return Measured([value * 2**20 / 1e9 for value in mebibytes]) if mebibytes else None


def _seconds(values: Optional[Sequence[float]]) -> str:
    return Measured(values).text("s") if values else NOT_MEASURED


def _milliseconds(values: Optional[Sequence[float]]) -> str:
    return Measured([1000 * value for value in values]).text("ms", 1) if values else NOT_MEASURED


def _times(value: Optional[Measured]) -> str:
    return NOT_MEASURED if value is None else value.text("x").replace(" x", "x", 1)


def _percent(value: Optional[Measured], digits: int = 0) -> str:
    if value is None:
        return NOT_MEASURED
    wide = f", spread {value.spread:.0%}" if value.spread > WIDE else ""
    lowest, highest = min(value.values), max(value.values)
    return f"{value.median:.{digits}%} ({lowest:.{digits}%} to {highest:.{digits}%}{wide})"
