"""The report as a person meets it: opened from the disk in a real browser, filtered, and looked through by keys."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Iterator, List

import pytest

from jobs.config import read_settings
from jobs.pages.html_report import write_report
from jobs.submit.prepare import prepare_run
from jobs.worker.rehearsal import generate
from jobs.worker.worker import Worker, run_shard
from ldm.errors import GenerationError
from tests.browser import Page, find_browser, open_browser
from tests.jobs.support import REHEARSAL

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)> ${x} \"'&amp; 一只猫"
PROMPTS = ["a lion in a park", "a Lion at night", HOSTILE, "a fox"]
SEEDS = (41, 42, 43)
UNLUCKY = 10  # the picture of this number fails

SHOWN = "[...document.querySelectorAll('#gallery > li:not([hidden]) .tile')].map((tile) => Number(tile.dataset.index))"
TITLE = "document.getElementById('details-title').textContent"
FOCUS = "document.activeElement.dataset.index ?? document.activeElement.id"


def generate_or_fail(requests):
    if any(request.prompt == PROMPTS[UNLUCKY // len(SEEDS)] and request.seed == 42 for request in requests):
        raise GenerationError("no picture of a fox")
    return generate(requests)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the page of a run of four prompts with three seeds each."""
    folder = tmp_path_factory.mktemp("report of <a> run")
    path = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt, "seed": seed}) for prompt in PROMPTS for seed in SEEDS]
    path.write_text("\n".join(lines), encoding="utf-8")
    prepared = prepare_run(path, read_settings([*REHEARSAL, f"outputs={folder}"]))
    run_shard(prepared.run.shard(0), prepared.run, generate_or_fail, Worker("node/7_0/1", "a card", 1))
    return Path(write_report(prepared.run, prepared.info).html).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("needs a Chromium: apt-get install chromium-headless-shell, or chromium")
    with open_browser(program) as page:
        yield page


@pytest.fixture
def page(browser: Page, report: str) -> Iterator[Page]:
    """The page as it opens; whatever a test does to it, it asks for nothing and complains of nothing."""
    browser.open(report)
    yield browser
    assert [address for address in browser.requests if not address.startswith(("data:", report))] == []
    assert browser.complaints == []
    assert browser.run("document.title") != "taken"


def choose(page: Page, control: str, value: str) -> List[int]:
    """What is shown once a control has been set to a value as a person sets it."""
    page.run(
        f"(() => {{ const control = document.getElementById('{control}'); control.value = {json.dumps(value)};"
        "control.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )
    return page.run(SHOWN)


def test_all_pictures_are_there_and_decode(page):
    assert page.run(SHOWN) == list(range(12))
    assert page.run("Promise.all([...document.images].map((image) => image.decode())).then((all) => all.length)") == 11
    assert page.run("document.querySelectorAll('.caption')[6].textContent") == HOSTILE
    assert page.run("document.scripts.length") == 2


@pytest.mark.parametrize(
    ("control", "value", "indices"),
    [
        ("q", "lion", [0, 1, 2, 3, 4, 5]),
        ("q", "night lion", [3, 4, 5]),
        ("q", "<script>", [6, 7, 8]),
        ("q", "只猫", [6, 7, 8]),
        ("q", "zebra", []),
        ("seed", "42", [1, 4, 7, 10]),
        ("seed", "41, 43-50", [0, 2, 3, 5, 6, 8, 9, 11]),
        ("show", "failed", [UNLUCKY]),
        ("show", "flagged", []),
    ],
)
def test_pictures_are_chosen_by_prompt_seed_and_fate(page, control, value, indices):
    assert choose(page, control, value) == indices
    count = page.run("document.getElementById('count').value")
    assert count == f"{len(indices)} of 12 pictures"
    assert page.run("document.getElementById('nothing').hidden") is bool(indices)


def test_the_slowest_come_first_if_asked_and_filters_keep_the_order(page):
    slowest = choose(page, "sort", "slow")
    seconds = page.run(f"{SHOWN}.map((index) => byIndex.get(index).seconds ?? -1)")
    assert seconds == sorted(seconds, reverse=True)
    assert slowest[-1] == UNLUCKY
    assert choose(page, "q", "lion") == [index for index in slowest if index < 6]
    choose(page, "q", "")
    assert choose(page, "sort", "") == list(range(12))


def test_filters_add_up_and_the_address_keeps_them(page, report):
    choose(page, "q", "lion")
    assert choose(page, "seed", "42") == [1, 4]
    address = page.run("location.href")
    assert urllib.parse.parse_qs(urllib.parse.urlsplit(address).fragment) == {"q": ["lion"], "seed": ["42"]}
    page.open(address)
    assert page.run(SHOWN) == [1, 4]
    assert page.run("document.getElementById('q').value") == "lion"


def test_a_click_shows_all_of_a_picture_and_escape_closes(page):
    page.run("document.querySelectorAll('.tile')[7].click()")
    assert page.run("document.getElementById('details').open") is True
    assert page.run(TITLE) == "Picture 7"
    assert page.run("document.getElementById('details-prompt').textContent") == HOSTILE
    fields = page.run(
        "Object.fromEntries([...document.querySelectorAll('#details-fields dt')]"
        ".map((term) => [term.textContent, term.nextSibling.textContent]))"
    )
    assert (fields["Seed"], fields["Steps"], fields["File"]) == ("42", "1", "samples/000/000007.png")
    assert (fields["Worker"], fields["Device"], len(fields["SHA-256"])) == ("node/7_0/1", "a card", 64)
    infotext = page.run("document.getElementById('details-infotext').textContent")
    assert infotext.startswith(f"{HOSTILE}\nSteps: 1, Sampler: PLMS")
    link = page.run("document.getElementById('details-file').href")
    assert Path(urllib.parse.unquote(urllib.parse.urlsplit(link).path)).is_file()
    page.press("Escape", 27)
    page.wait("!document.getElementById('details').open")
    page.wait(f"({FOCUS}) === '7'")  # the browser gives it back in a step of its own
    assert page.run(FOCUS) == "7"


def test_a_failed_picture_says_why(page, report):
    page.open(f"{report}#picture={UNLUCKY}")
    assert page.run("document.getElementById('details-trouble').textContent") == "no picture of a fox"
    assert page.run("document.getElementById('details-picture').textContent") == "no picture"
    assert page.run("document.getElementById('details-file').hidden") is True


def test_keys_lead_through_the_page(page):
    page.press("/", 191)
    assert page.run(FOCUS) == "q"
    page.type("lion")
    assert page.run(SHOWN) == [0, 1, 2, 3, 4, 5]
    page.run("document.querySelector('#gallery > li:not([hidden]) .tile').focus()")
    for key, code, reached in [
        ("ArrowRight", 39, "1"),
        ("ArrowRight", 39, "2"),
        ("ArrowLeft", 37, "1"),
        ("End", 35, "5"),
    ]:
        page.press(key, code)
        assert page.run(FOCUS) == reached
    page.press("Home", 36)
    page.run("document.activeElement.click()")
    assert page.run(TITLE) == "Picture 0"
    page.press("ArrowRight", 39)
    assert page.run(TITLE) == "Picture 1"
    for _ in range(9):
        page.press("ArrowRight", 39)
    assert page.run(TITLE) == "Picture 5", "the filter holds here too"


def test_the_arrow_down_leads_to_the_picture_below(page):
    page.call("Emulation.setDeviceMetricsOverride", width=900, height=700, deviceScaleFactor=1, mobile=False)
    columns = page.run("getComputedStyle(document.getElementById('gallery')).gridTemplateColumns.split(' ').length")
    assert 2 <= columns <= 6
    page.run("document.querySelectorAll('.tile')[1].focus()")
    page.press("ArrowDown", 40)
    assert page.run(FOCUS) == str(1 + columns)
    page.press("ArrowUp", 38)
    assert page.run(FOCUS) == "1"


def test_the_parameters_are_copied(page):
    page.run("document.querySelectorAll('.tile')[3].click()")
    page.run("document.getElementById('copy').click()")
    page.wait("document.getElementById('copied').textContent !== ''")
    said = page.run("document.getElementById('copied').textContent")
    selected = page.run("String(getSelection())")
    assert said == "copied" or (said.startswith("selected") and selected.startswith(PROMPTS[1]))


def test_a_sweep_has_prompts_as_rows_and_seeds_as_columns(page):
    choose(page, "view", "sweep")
    table = page.run(
        "[...document.querySelectorAll('#sweep tr')].map((row) => [...row.children].map("
        "(cell) => cell.querySelector('.tile') ? Number(cell.querySelector('.tile').dataset.index) : cell.textContent))"
    )
    assert table[0][1:] == ["41", "42", "43"]
    assert table[0][0].split() == ["Prompt", "\u2193", "Seed", "\u2192"]
    assert table[1:] == [[prompt, *range(3 * row, 3 * row + 3)] for row, prompt in enumerate(PROMPTS)]
    choose(page, "seed", "42")
    assert page.run("document.querySelectorAll('#sweep .tile').length") == 4
    page.run("document.querySelector('#sweep .tile').click()")
    assert page.run(TITLE) == "Picture 1"


def test_the_other_parts_are_a_click_away(page):
    for tab, text in [("time", "node/7_0/1"), ("problems", "no picture of a fox"), ("run", "rehearsal")]:
        page.run(f"document.querySelector('[data-tab={tab}]').click()")
        assert text in page.run(f"document.getElementById('{tab}').innerText")
        assert page.run("document.querySelectorAll('main > section.current').length") == 1
    page.run("document.querySelector('#problems a').click()")
    page.wait("document.getElementById('details').open")
    assert page.run(TITLE) == f"Picture {UNLUCKY}"


def test_the_page_may_not_reach_the_network(browser, report):
    browser.open(report)
    assert browser.run("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')") == "refused"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)
