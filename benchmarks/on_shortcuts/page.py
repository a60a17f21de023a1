"""The measured part of docs/shortcuts.md, its plot and its pictures, from what was measured."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np
from on_cluster.measure import ROOT, WIDE

from on_shortcuts import plot, sheet
from on_shortcuts.settings import BASE, MERGED, PAINTED, SETTINGS, SIZES, Setting
from on_shortcuts.small import BATCH, OTHER

PAGE = ROOT / "docs" / "shortcuts.md"
PLOT = ROOT / "docs" / "images" / "shortcuts.svg"
SHEET = ROOT / "docs" / "images" / "shortcuts.png"
BEGIN, END = "<!-- make bench-shortcuts writes what follows -->", "<!-- make bench-shortcuts ends here -->"
TEXT = """
{when}

**Speed** is in seconds of the processor with one thread, which other work on the machine cannot take away, only slow
down: all have their turn in each of at least {rounds} rounds, and medians count.{scattered}

- *emoji-v1*: a batch of {batch} pictures of 64 px in {small_dtype}, text and first stage included.
- *SD v1*: the calls of its U-Net for one picture, counted on emoji-v1, by what each takes (table below) with random
  weights in {large_dtype}. Text and first stage are left out: no shortcut touches them.

**Difference** is that of emoji-v1's pictures for {prompts} prompts of `scripts/evaluate_emoji.py`, in float32 with
guidance 3, from those of PLMS at 50 steps with the same seeds; medians. *In latents* is the root of the mean square
between both pictures as the first stage encodes them. What is *right* that script tells; one picture is {one}.
The last row is a yardstick: all of the work with other seeds, so other pictures of the same prompts.

{table}

![Speed against difference](images/shortcuts.svg)

What a call of SD v1's U-Net takes for one picture, and what the others take of that:

{kinds}

The first {pictures} prompts by each setting:

![The same pictures by each setting](images/shortcuts.png)
"""
KINDS = {
    "whole guided": "whole, guided: two rows",
    "whole": "whole, not guided: one row",
    "reused guided": "with the deep map reused, guided",
    "reused": "with the deep map reused, not guided",
    "merged guided": f"whole, guided, merge_tokens={MERGED}",
}

Kept = Mapping[str, Mapping[str, Any]]
Costs = Mapping[str, Sequence[float]]  # of the large network, by the kind of call


def read(file: Path) -> Dict[str, Any]:
    """What is kept, by part; nothing where there is no file."""
    kept: Dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return kept


def write(kept: Kept) -> None:
    """Replace the measured part of the page, the plot and the sheet."""
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), text(kept)), encoding="utf-8")
    PLOT.write_text(plot.svg(panels(kept), _distance(kept, OTHER), OTHER), encoding="utf-8")
    found = kept["difference"]["found"]
    SHEET.write_bytes(sheet.png({name: [np.array(each, np.uint8) for each in found[name]["sheet"]] for name in found}))


def replaced(page: str, measured: str) -> str:
    """The page with another measured part; ValueError where it does not have the marks of one."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE} must have the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{measured}\n{END}{after}"


def text(kept: Kept) -> str:
    """The measured part."""
    prompts = kept["difference"]["prompts"]
    values = [*kept["seconds"]["found"].values()]
    values += [each for costs in kept["large"]["found"].values() for each in costs.values()]
    return TEXT.format(
        when=when(kept),
        rounds=min(map(len, values)),
        scattered=scattered(values),
        batch=BATCH,
        small_dtype=kept["seconds"]["dtype"],
        large_dtype=kept["large"]["dtype"],
        prompts=prompts,
        one=percent(1 / prompts),
        table="\n".join(table(kept)),
        kinds="\n".join(kinds(kept["large"]["found"])),
        pictures=len(kept["difference"]["found"][BASE.name]["sheet"]),
    )


def when(kept: Kept) -> str:
    """When and on what all parts were measured."""
    dates = sorted({part["date"] for part in kept.values()})
    about = "; ".join(dict.fromkeys(part["about"] for part in kept.values()))
    return f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))} by `make bench-shortcuts` on {about}."


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def scattered(values: Sequence[Sequence[float]]) -> str:
    """How many of the series have a middle half that is wide."""
    wide = sum(middle_half(each) > WIDE * statistics.median(each) for each in values)
    return f" The middle half of {wide} of {len(values)} is wider than {percent(WIDE, 0)}." if wide else ""


def middle_half(values: Sequence[float]) -> float:
    """How wide it is."""
    return float(np.percentile(values, 75) - np.percentile(values, 25))


def faster_small(kept: Kept, setting: Setting) -> float:
    """How often a setting's batch of the small model goes into that of all the work."""
    found = kept["seconds"]["found"]
    return float(statistics.median(found[BASE.name]) / statistics.median(found[setting.name]))


def faster_large(kept: Kept, setting: Setting, size: int) -> float:
    """How often a setting's calls of the large network go into those of all the work."""
    costs = kept["large"]["found"][str(size)]

    def spent(calls: Mapping[str, int]) -> float:
        return float(sum(count * statistics.median(costs[kind]) for kind, count in calls.items()))

    return spent(_calls(kept, BASE)) / spent(_calls(kept, setting))


def unguided(calls: Mapping[str, int]) -> int:
    return sum(count for kind, count in calls.items() if not kind.endswith("guided"))


def _calls(kept: Kept, setting: Setting) -> Mapping[str, int]:
    found: Mapping[str, Mapping[str, int]] = kept["calls"]["found"]
    return found[setting.name] if setting.painted else {"merged guided": found[BASE.name]["whole guided"]}


def calls_text(calls: Mapping[str, int]) -> str:
    """The calls of one picture, and how many of them are less than whole and guided."""
    total = sum(calls.values())
    reused = sum(count for kind, count in calls.items() if kind.startswith("reused"))
    less = [f"{count} {what}" for count, what in ((reused, "reuse"), (unguided(calls), "unguided")) if count]
    return f"{total}, {', '.join(less)}" if less else str(total)


def table(kept: Kept) -> List[str]:
    """A row for each setting, then the yardstick."""
    sizes = " | ".join(f"SD v1, {size} px" for size in SIZES)
    rows = [
        f"| setting | network calls | times faster: emoji-v1, 64 px | {sizes} | PSNR, dB | in latents | object right "
        "| background right |",
        f"| --- | --- {'| --: ' * (len(SIZES) + 5)}|",
    ]
    for setting in SETTINGS:
        times = [faster_small(kept, setting)] if setting.painted else []
        times += [faster_large(kept, setting, size) for size in SIZES]
        speeds = [""] * (len(SIZES) + 1 - len(times)) + [f"{each:.2f}" for each in times]
        calls = calls_text(_calls(kept, setting))
        rows.append(f"| {' | '.join([setting.name, calls, *speeds, *_differences(kept, setting.name)])} |")
    blank = [""] * (len(SIZES) + 2)
    rows.append(f"| {' | '.join([OTHER, *blank, *_differences(kept, OTHER)])} |")
    return rows


def _differences(kept: Kept, name: str) -> List[str]:
    """The last four cells of a row: none for what the small model cannot show, half of them for all of the work."""
    found = kept["difference"]["found"].get(name)
    if found is None:
        return [""] * 4
    shares = [percent(found["object"]), percent(found["background"])]
    if name == BASE.name:
        return ["", "", *shares]
    return [f"{statistics.median(found['psnr']):.1f}", f"{_distance(kept, name):.3f}", *shares]


def _distance(kept: Kept, name: str) -> float:
    return float(statistics.median(kept["difference"]["found"][name]["latent"]))


def kinds(costs: Mapping[str, Costs]) -> List[str]:
    """A row for each kind of call: the first in seconds, the others as shares of it."""
    rows = [f"| call | {' | '.join(f'{size} px' for size in costs)} |", f"| --- {'| --: ' * len(costs)}|"]
    first, *others = KINDS
    seconds = [statistics.median(each[first]) for each in costs.values()]
    rows.append(f"| {KINDS[first]} | {' | '.join(f'{each:.2f} s' for each in seconds)} |")
    for kind in others:
        values = [statistics.median(each[kind]) for each in costs.values()]
        shares = (f"{own / whole:.3f}" for own, whole in zip(values, seconds))
        rows.append(f"| {KINDS[kind]} | {' | '.join(shares)} |")
    return rows


def panels(kept: Kept) -> Dict[str, List[plot.Dot]]:
    """The dots of each panel: all that the small model can show but the base, which is where the axes begin."""
    shown = [setting for setting in PAINTED if setting is not BASE]
    size = SIZES[-1]
    speeds = {
        "emoji-v1": [faster_small(kept, setting) for setting in shown],
        f"SD v1 at {size} px, U-Net (the distance is that of emoji-v1)": [
            faster_large(kept, setting, size) for setting in shown
        ],
    }
    return {
        title: [
            plot.Dot(times, _distance(kept, setting.name), short(setting), setting.kind)
            for times, setting in zip(faster, shown)
        ]
        for title, faster in speeds.items()
    }


def short(setting: Setting) -> str:
    """What tells a dot from the others of its colour."""
    name = setting.name.replace("cache_interval=", "cache ").replace("guidance_until=", "until ")
    return re.sub(r", (\d+) steps", r" \1", name).replace("DPM++ 2M", "DPM++")
