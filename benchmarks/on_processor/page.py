"""A page such as docs/benchmarks.md and its plot, from what was measured; and the file that keeps the measurements."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from on_cluster.measure import ROOT, Measured, markdown

from on_processor import plot, rows
from on_processor.parts import NO_BFLOAT16, Series
from on_processor.task import SIZE
from on_processor.turns import DISTURBED, TRIES

TEXT = """# Speed on a processor

`make bench` measures this and writes this page. {machine}

All of it is done with one set of weights of the size of Stable Diffusion v1, random and the same for everybody. Each
way has a process of its own that holds the model and computes when it is asked; they are asked in turns, one at a time,
so that a ratio is of numbers taken right after each other. Values are medians, with the lowest and the highest of the
rounds behind them; a spread above 10 % is said. *plain* is this project with all that is listed under [levers](#levers)
switched off. diffusers runs as its documentation has it, channels last in bfloat16, in an environment of its own
with the same torch. A forward of the U-Net is what one step with guidance asks for: the noise of one latent with two
texts.

## Networks

{forwards}

*Of the limit*: operations a second, over those of the fastest large product (matrices, a linear layer, a convolution)
that the same libraries manage on this processor in the same round. They are counted as those of plain sums; ours saves
some of them (see [levers](#levers)), so it may come above 100 %.

{limits}

![How much of the limit the U-Net reaches](images/{plot})

{compiled}

## Processes

{processes}

Files lie in the system's cache, and ours remembers the hash of the weights, from the round that warms up.
Ours reads, converts and packs the U-Net's weights in its first call, where diffusers has them ready by then: it begins
to sample early and its first step takes longer, so the whole process is what compares the two.
CompVis's own code is not run here, so no ratio to it stands on this page; nor does one to stable-diffusion.cpp.

## Same numbers

The length of the difference over the length of what it is compared with.{passes} Both programs were given the same
latents and words.

{accuracy}

## The small model

emoji-v1, 64 px, must not pay for what the large one gains; the bar is {small_bar}x, as calls of a few milliseconds
cannot be told apart more finely.

{small}

## Levers

What ours loses on the U-Net at 256 px when one is switched off:

{in_use}

What was tried and is not in use:

{left_out}

Not in use though it may gain: freed memory kept by the C library, with which the memory of a job was seen to grow
without end (glibc 2.36); and `torch.compile`, which wants a compiler on the compute node and a minute or more in each
process and for each size of batch.
"""


DOCS = ROOT / "docs"
PASSES = " Ours passes where it is at most diffusers' with 5 % for chance."  # of bfloat16 against float32


def keep(file: Path, part: str, about: Sequence[str], series: Series) -> None:
    """Put the series that a part has measured in the place of those of the same names."""
    kept = read(file)
    series = {**kept.get(part, {}).get("series", {}), **series}
    kept[part] = {"date": f"{datetime.date.today():%Y-%m-%d}", "about": about, "series": series}
    file.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def read(file: Path) -> Dict[str, Any]:
    """What is kept, by part; nothing where there is no file."""
    kept: Dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return kept


def write(kept: Mapping[str, Any]) -> None:
    """Replace the page of such a machine, and its plot, by what was kept."""
    page = page_of(kept)
    page.write_text(text(kept), encoding="utf-8")
    plot_of(page).write_text(plot.svg(all_series(kept)), encoding="utf-8")


def page_of(kept: Mapping[str, Any]) -> Path:
    """Which page of the project's a machine as the measured one has."""
    return DOCS / ("benchmarks.md" if "bfloat16" in dtypes_of(kept) else "benchmarks-float32.md")


def plot_of(page: Path) -> Path:
    """Where the plot of a page lies."""
    return page.parent / "images" / f"{page.stem}.svg"


def all_series(kept: Mapping[str, Any]) -> Dict[str, Any]:
    """The series of all parts."""
    return {name: ways for part in kept.values() for name, ways in part["series"].items()}


def text(kept: Mapping[str, Any]) -> str:
    """The page."""
    found, dtypes = all_series(kept), dtypes_of(kept)
    tables: Dict[str, List[str]] = {
        "forwards": rows.forwards(found, dtypes),
        "limits": rows.limits(found, dtypes),
        "compiled": [compiled(found, dtypes[0])],
        "processes": markdown(rows.processes(found, dtypes[0])),
        "accuracy": rows.accuracy(found, dtypes),
        "small": rows.small(found, dtypes),
        "in_use": rows.lever_table(found, dtypes, in_use=True),
        "left_out": rows.lever_table(found, dtypes, in_use=False),
    }
    lines = {name: "\n".join(each) for name, each in tables.items()}
    passes = PASSES if "bfloat16" in dtypes else ""
    plot_name = plot_of(page_of(kept)).name
    return TEXT.format(machine=machine(kept), plot=plot_name, passes=passes, small_bar=rows.SMALL_BAR, **lines)


def dtypes_of(kept: Mapping[str, Any]) -> Sequence[str]:
    """What the product computes in on the machine that was measured, the quicker first."""
    without = any(NO_BFLOAT16 in part["about"] for part in kept.values())
    return [dtype for dtype in rows.DTYPES if not (without and dtype == "bfloat16")]


def machine(kept: Mapping[str, Any]) -> str:
    """When, on what and with what all parts were measured."""
    dates = sorted({part["date"] for part in kept.values()}) or ["never"]
    words = dict.fromkeys(word for part in kept.values() for word in part["about"])
    return f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {', '.join(words)}.{disturbances(kept)}"


def disturbances(kept: Mapping[str, Any]) -> str:
    """In how many rounds the host of a virtual machine took a share of its processors; nothing where it never did."""
    shares = [share for ways in all_series(kept).values() for share in ways.get("stolen", ())]
    disturbed = [share for share in shares if share > DISTURBED]
    if not disturbed:
        return ""
    return (
        f" It is a virtual machine whose host gave more than {DISTURBED:.0%} of its processors' time to others in "
        f"{len(disturbed)} of {len(shares)} rounds, up to {max(disturbed):.0%}; "
        f"there each sample is the least disturbed of up to {TRIES}."
    )


def compiled(found: rows.Found, dtype: str) -> str:
    """What torch.compile changes for diffusers."""
    series = found.get(f"compiled unet {dtype} {SIZE}", {})
    against = rows.ratio(series, "ours", "diffusers")
    if against is None:
        return "Against diffusers with `torch.compile`: not measured."
    theirs, ours = (Measured(series[way]).text("s") for way in ("diffusers", "ours"))
    return (
        f"diffusers with `torch.compile` and frozen weights, which compiles for a minute or more in each process: the "
        f"U-Net in {dtype} at {SIZE} px in {theirs}, ours in the same rounds {ours}: {against.text('x')}."
    )
