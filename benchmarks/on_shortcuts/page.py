"""The table and the plot of docs/shortcuts.md, from what was measured."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List, Mapping

from on_cluster.measure import Measured

from jobs.pages.plots import Axis, round_values
from on_shortcuts.settings import BASE, SETTINGS, Setting

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 64, 52, 32, 200  # px
COLOURS = {
    "all of the work": "#333333",
    "feature cache": "#2166ac",
    "guidance ends early": "#b2182b",
    "fewer steps": "#1b7837",
    "two at once": "#762a83",
    "LCM, weights not distilled": "#999999",
}

Kept = Mapping[str, Mapping[str, Any]]


def times_faster(seconds: Mapping[str, List[float]], name: str) -> Measured:
    """How often a setting's batch goes into that of PLMS at 50 steps, a number a round."""
    return Measured([base / own for base, own in zip(seconds[BASE.name], seconds[name])])


def calls_text(calls: Mapping[str, int]) -> str:
    """The calls of one picture, and how many of them are less than whole and guided."""
    total = sum(calls.values())
    reused, alone = calls["reused"] + calls["reused guided"], calls["whole"] + calls["reused"]
    less = [f"{count} {what}" for count, what in ((reused, "reuse"), (alone, "unguided")) if count]
    return f"{total}, {', '.join(less)}" if less else str(total)


def table(kept: Kept) -> List[str]:
    """A row for each setting."""
    rows = [
        "| setting | network calls | times faster | PSNR, dB | in latents | object right | background right |",
        "| --- | --- | --- | --: | --: | --: | --: |",
    ]
    for setting in SETTINGS:
        found = kept["difference"][setting.name]
        is_base = setting is BASE
        rows.append(
            f"| {setting.name} | {calls_text(kept['calls'][setting.name])} "
            f"| {'1' if is_base else times_faster(kept['seconds'], setting.name).text('x')} "
            f"| {'' if is_base else format(statistics.median(found['psnr']), '.1f')} "
            f"| {'' if is_base else format(statistics.median(found['latent']), '.3f')} "
            f"| {found['object']:.1%} | {found['background']:.1%} |"
        )
    return rows


def svg(kept: Kept) -> str:
    """Every setting as a dot: across, how many times faster; up, how far its latents are from those of all the work."""
    places: Dict[str, Any] = {
        setting.name: (
            times_faster(kept["seconds"], setting.name).median,
            statistics.median(kept["difference"][setting.name]["latent"]),
        )
        for setting in SETTINGS
    }
    across, up = (_axis(max(place[side] for place in places.values())) for side in (0, 1))
    shapes = [*_grid(across, up), *_legend()]
    for setting in SETTINGS:
        x, y = _x(across, places[setting.name][0]), _y(up, places[setting.name][1])
        shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLOURS[setting.kind]}"/>')
        shapes.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" font-size="10">{_short(setting)}</text>')
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333333"'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', background, *shapes, "</svg>", ""])


def _axis(highest: float) -> Axis:
    end = 1.1 * highest or 1.0
    return Axis(0.0, end, round_values(end))


def _x(axis: Axis, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * value / axis.end


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / axis.end


def _grid(across: Axis, up: Axis) -> List[str]:
    shapes = [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle">times faster</text>',
        f'<text x="{LEFT - 40}" y="20">distance in latents</text>',
    ]
    for tick in across.ticks:
        x = _x(across, tick)
        shapes.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#dddddd"/>')
        shapes.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in up.ticks:
        y = _y(up, tick)
        shapes.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        shapes.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.2g}</text>')
    return shapes


def _legend() -> List[str]:
    shapes = []
    for number, (kind, colour) in enumerate(COLOURS.items()):
        y = TOP + 10 + 20 * number
        shapes.append(f'<circle cx="{WIDTH - RIGHT + 20}" cy="{y}" r="5" fill="{colour}"/>')
        shapes.append(f'<text x="{WIDTH - RIGHT + 32}" y="{y + 4}">{kind}</text>')
    return shapes


def _short(setting: Setting) -> str:
    """What tells a dot from the others of its colour."""
    if setting.kind == "two at once":
        return "15, cache 2"
    word = setting.name.split("=")[-1] if "=" in setting.name else setting.name.replace(" steps", "")
    return word.replace("LCM, ", "")
