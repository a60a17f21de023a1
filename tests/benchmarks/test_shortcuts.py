"""What is said about the shortcuts is what was measured of them, and can be read."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The modules beside the script, as it finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        from on_shortcuts import clock, large, page, plot, settings, sheet, small

        modules = (clock, large, page, plot, settings, sheet, small)
        yield SimpleNamespace(**{module.__name__.split(".")[1]: module for module in modules})


def kept(parts: SimpleNamespace) -> Dict[str, Any]:
    """Every setting twice as fast as PLMS at 50 steps; it reuses two thirds."""
    base, names = parts.settings.BASE.name, [setting.name for setting in parts.settings.PAINTED]
    reuses = {"whole guided": 17, "whole": 0, "reused guided": 34, "reused": 0}
    calls = dict.fromkeys(names, reuses)
    calls[base] = {"whole guided": 51, "whole": 0, "reused guided": 0, "reused": 0}
    picture = np.zeros((8, 8, 3), np.uint8).tolist()
    found = {"psnr": [30.0, 40.0, 50.0], "latent": [0.1, 0.2, 0.3], "object": 0.915, "background": 1.0}
    found["sheet"] = [picture, picture]
    costs = {"whole guided": [3.0, 1.0, 1.0], "whole": [0.5], "reused guided": [0.25], "reused": [0.125]}
    costs["merged guided"] = [0.8]
    parts_kept: Dict[str, Dict[str, Any]] = {
        "calls": {"found": calls},
        "seconds": {
            "dtype": "bfloat16",
            "found": {name: [2.1, 2.0, 1.0] if name == base else [1.0, 1.0, 5.0] for name in names},
        },
        "large": {"dtype": "bfloat16", "found": {"256": costs, "512": costs}},
        "difference": {"prompts": 3, "found": dict.fromkeys([*names, parts.small.OTHER], found)},
    }
    return {name: {"date": "2026-01-01", "about": "a machine", **part} for name, part in parts_kept.items()}


def test_a_row_has_medians_of_turns_and_of_pictures(parts: SimpleNamespace) -> None:
    rows = {row.split(" | ")[0]: row for row in parts.page.table(kept(parts))}
    assert len(rows) == 2 + len(parts.settings.SETTINGS) + 1
    assert rows["| PLMS, 50 steps"] == "| PLMS, 50 steps | 51 | 1.00 | 1.00 | 1.00 |  |  | 91.5 % | 100.0 % |"
    reused = "| cache_interval=2 | 51, 34 reuse | 2.00 | 2.00 | 2.00 | 40.0 | 0.200 | 91.5 % | 100.0 % |"
    assert rows["| cache_interval=2"] == reused
    assert rows["| merge_tokens=0.5"] == "| merge_tokens=0.5 | 51 |  | 1.25 | 1.25 |  |  |  |  |"
    assert rows["| other seeds"] == "| other seeds |  |  |  |  | 40.0 | 0.200 | 91.5 % | 100.0 % |"
    assert {row.count("|") for row in rows.values()} == {10}


def test_calls_are_told_by_what_is_left_out_of_them(parts: SimpleNamespace) -> None:
    assert parts.page.calls_text({"whole guided": 5, "whole": 1, "reused guided": 3, "reused": 2}) == (
        "11, 5 reuse, 3 unguided"
    )
    assert parts.page.calls_text({"merged guided": 51}) == "51"


def test_each_has_its_turn_in_every_round(parts: SimpleNamespace) -> None:
    called: List[str] = []
    found = parts.clock.in_turns({name: partial(called.append, name) for name in "ab"}, 2)
    assert "".join(called) == "ab" + "ab" + "ba", "the first round warms up"
    assert {name: len(values) for name, values in found.items()} == {"a": 2, "b": 2}
    assert min(map(min, found.values())) >= 0


def test_kinds_of_calls_are_shares_of_a_whole_one(parts: SimpleNamespace) -> None:
    _, _, first, *others = parts.page.kinds(kept(parts)["large"]["found"])
    assert first == "| whole, guided: two rows | 1.00 s | 1.00 s |"
    assert [row.split(" | ")[1:] for row in others] == [
        [f"{share:.3f}", f"{share:.3f} |"] for share in (0.5, 0.25, 0.125, 0.8)
    ]


def test_the_measured_part_is_written_between_its_marks(parts: SimpleNamespace) -> None:
    page, text = parts.page, parts.page.text(kept(parts))
    once = page.replaced(f"before\n{page.BEGIN}\nold\n{page.END}\nafter", text)
    assert once == f"before\n{page.BEGIN}\n{text}\n{page.END}\nafter"
    assert page.replaced(once, text) == once
    with pytest.raises(ValueError, match=r"shortcuts\.md must have the lines <!--"):
        page.replaced("no marks", text)
    assert page.replaced(page.PAGE.read_text(encoding="utf-8"), text).count(text) == 1


def test_every_setting_that_can_be_shown_is_a_labelled_dot_of_each_panel(parts: SimpleNamespace) -> None:
    panels = parts.page.panels(kept(parts))
    plot = xml.etree.ElementTree.fromstring(parts.plot.svg(panels, 1.0, "other seeds"))
    shown = len(parts.settings.PAINTED) - 1
    assert len(plot.findall(f"{SVG}circle")) == 2 * shown + len(parts.plot.COLOURS)
    labels = [text.text for text in plot.findall(f"{SVG}text") if text.get("font-size") == "10"]
    assert len(labels) == 2 * shown + 2
    assert len(set(labels)) == shown + 1


def test_labels_cover_neither_dots_nor_each_other(parts: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    across, up = parts.plot.Scale(1.0, 10.0, 0.0, 600.0), parts.plot.Scale(0.1, 1.0, 300.0, 0.0)
    places = [(float(x), float(y)) for x, y in rng.uniform((50, 50), (450, 250), size=(16, 2))]
    places += [(places[0][0] + 1, places[0][1]), (590.0, 150.0)]
    boxes = parts.plot.label_boxes(["a label of 19 chars"] * len(places), places, across, up)
    assert not any(parts.plot.overlap(*pair) for pair in itertools.combinations(boxes, 2))
    assert not any(box[0] <= x <= box[2] and box[1] <= y <= box[3] for box in boxes for x, y in places)
    assert all(parts.plot.inside(box, (0.0, 0.0, 600.0, 300.0)) for box in boxes)


def test_an_axis_is_logarithmic_with_round_values(parts: SimpleNamespace) -> None:
    scale = parts.plot.Scale(0.1, 10.0, 0.0, 100.0)
    assert [scale.at(value) for value in (0.1, 1.0, 10.0)] == pytest.approx([0.0, 50.0, 100.0])
    assert all(math.isclose(one, other) for one, other in zip(scale.ticks[:3], (0.1, 0.15, 0.2)))


def test_settings_have_names_of_their_own_and_kinds_with_a_colour(parts: SimpleNamespace) -> None:
    settings = parts.settings.SETTINGS
    assert len({setting.name for setting in settings}) == len(settings)
    shown = {setting.kind for setting in parts.settings.PAINTED if setting is not parts.settings.BASE}
    assert shown == set(parts.plot.COLOURS)
    assert [setting.name for setting in settings if not setting.painted] == ["merge_tokens=0.5"]


def test_a_sheet_has_a_row_of_pictures_for_each_name(parts: SimpleNamespace) -> None:
    import io

    from PIL import Image

    red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = np.asarray(
        Image.open(io.BytesIO(parts.sheet.png({"one": [red, blue], "other": [blue, red]}))).convert("RGB")
    )
    corners = [(6 + row * 14 + 4, parts.sheet.LABEL + column * 14 + 4) for row in (0, 1) for column in (0, 1)]
    assert [tuple(sheet[corner]) for corner in corners] == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]


def test_each_kind_of_call_of_a_large_network_is_timed(parts: SimpleNamespace, tmp_path: Path) -> None:
    measured = parts.large.Large(TINY, tmp_path, (64, 128))
    costs = measured.costs(2)
    assert costs.keys() == {"64", "128"}
    for each in costs.values():
        assert each.keys() == parts.page.KINDS.keys()
        assert all(len(values) >= 2 and min(values) > 0 for values in each.values())


@pytest.mark.parametrize(
    ("shortcuts", "expected"),
    [
        ({}, (4, 0, 0, 0)),
        ({"cache_interval": 2}, (2, 0, 2, 0)),
        ({"guidance_until": 0.5}, (2, 2, 0, 0)),
        ({"cache_interval": 4, "guidance_until": 0.5}, (1, 1, 1, 1)),
    ],
)
def test_calls_are_counted_by_what_runs_of_the_network(
    parts: SimpleNamespace, shortcuts: Dict[str, Any], expected: Any
) -> None:
    from ldm.inference.spec import SamplerConfig, SamplerName, Shortcuts

    small = parts.small.Small(1)
    sampler = SamplerConfig(SamplerName.DDIM, 4, 3.0, shortcuts=Shortcuts(**shortcuts))
    assert tuple(small.calls(sampler).values()) == expected
    assert tuple(small.calls(sampler).values()) == expected


def test_equal_pictures_have_a_finite_ratio(parts: SimpleNamespace) -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert parts.small.psnr(black, white) == pytest.approx(0.0)
    assert 60 < parts.small.psnr(black, black) < 100
