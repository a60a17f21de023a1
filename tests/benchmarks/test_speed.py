"""The benchmark of the networks compares like with like, and says what it found; what ours gained costs nobody else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import textwrap
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import pytest
import torch

from ldm.inference import convolving, packing

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"
NOISE = 1.15


@pytest.fixture(scope="module")
def speed() -> Iterator[SimpleNamespace]:
    """The modules beside the script, as it finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        from on_cluster import measure
        from on_processor import levers, page, parts, plot, rows, talk, turns, weights

        modules = (levers, measure, page, parts, plot, rows, talk, turns, weights)
        yield SimpleNamespace(**{module.__name__.split(".")[1]: module for module in modules})


@pytest.fixture(scope="module")
def bench(speed: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bench of the tiny model with its files, without diffusers."""
    found = speed.parts.Bench(TINY, tmp_path_factory.mktemp("bench"), None, 1, speed.turns.Patience(0))
    found.prepare()
    return found


def server(speed: SimpleNamespace, folder: Path, code: str) -> Any:
    """A server that answers as `code` says, which defines `load`."""
    file = folder / "server.py"
    head = f"import sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nfrom on_processor.talk import serve\n"
    file.write_text(f"{head}{textwrap.dedent(code)}\nserve(load)\n")
    return speed.talk.Server([sys.executable, str(file)])


def test_a_server_answers_in_turn_and_its_chatter_is_no_answer(speed: SimpleNamespace, tmp_path: Path) -> None:
    code = """
    def load():
        print("loading ...")
        def add(one, other):
            print("adding ...")
            return one + other
        return {"add": add, "nothing": lambda: None}
    """
    adder = server(speed, tmp_path, code)
    assert adder.questions == ["add", "nothing"]
    assert [adder.ask("add", 1, 2), adder.ask("nothing"), adder.ask("add", 0.5, 0.25)] == [3, None, 0.75]
    adder.close()


def test_a_server_that_ends_is_an_error_with_its_last_words(speed: SimpleNamespace, tmp_path: Path) -> None:
    failing = server(speed, tmp_path, 'def load():\n    return {"fail": lambda: 1 / 0}')
    with pytest.raises(speed.talk.ServerError, match=r"(?s)ended with status 1.*ZeroDivisionError"):
        failing.ask("fail")
    with pytest.raises(speed.talk.ServerError, match="no such weights"):
        server(speed, tmp_path, 'def load():\n    raise SystemExit("no such weights")')


def test_a_short_call_is_repeated_within_a_sample(speed: SimpleNamespace) -> None:
    calls: List[int] = []
    seconds = speed.talk.seconds_of(lambda: calls.append(1), least=0.01)
    assert len(calls) > 1
    assert seconds * len(calls) >= 0.01
    calls.clear()
    assert speed.talk.seconds_of(lambda: calls.append(1), least=0.0) > 0
    assert len(calls) == 1


def test_ways_take_turns_and_none_is_always_the_first(speed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.turns, "StolenShare", lambda: made_up_share(0.0))
    asked: List[str] = []

    def ask(way: str) -> Callable[[], float]:
        return lambda: asked.append(way) or float(len(asked))  # type: ignore[func-returns-value]

    found = speed.turns.alternate({way: ask(way) for way in "ab"}, 3, speed.turns.Patience(0))
    assert "".join(asked) == "ab" + "ab" + "ba" + "ab"
    assert found == {"a": [3, 6, 7], "b": [4, 5, 8], "stolen": [0.0, 0.0, 0.0]}, "the first round warms up"


@pytest.mark.parametrize(
    ("patience", "shares", "found"),
    [
        (100, [0.01], (1, 0.01)),
        (100, [0.4, 0.01], (2, 0.01)),
        (100, [0.5, 0.2, 0.3, 0.4, 0.3], (2, 0.2)),  # it gives up at some time
        (0, [0.4], (1, 0.4)),
    ],
)
def test_a_sample_that_the_host_disturbed_is_taken_again_and_the_best_kept(
    speed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, patience: float, shares: List[float], found: Any
) -> None:
    left = iter(shares)
    monkeypatch.setattr(speed.turns, "StolenShare", lambda: made_up_share(next(left)))
    monkeypatch.setattr(speed.turns, "is_quiet", lambda: True)
    answers = iter(range(1, 10))
    assert speed.turns.Patience(patience).ask(lambda: next(answers)) == found
    assert not list(left)


def test_it_waits_for_a_quiet_machine_as_long_as_it_has_patience(
    speed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, answers, quiet = [0.0], iter([1.0, 2.0, 3.0]), iter([False, False, True, False, False])
    monkeypatch.setattr(speed.turns, "StolenShare", lambda: made_up_share(0.4))
    monkeypatch.setattr(speed.turns, "is_quiet", lambda: next(quiet))
    rest = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: clock.append(clock.pop() + seconds))
    monkeypatch.setattr(speed.turns, "time", rest)
    speed.turns.Patience(4 * speed.turns.REST_SECONDS).ask(lambda: next(answers))
    assert next(answers) == 3.0, "asked twice: at once, and when it was quiet"
    assert not list(quiet)


@contextlib.contextmanager
def made_up_share(share: float) -> Iterator[SimpleNamespace]:
    yield SimpleNamespace(share=share)


def test_the_share_of_the_host_is_read_from_the_kernel(speed: SimpleNamespace) -> None:
    with speed.turns.StolenShare() as stolen:
        sum(range(10**6))
    assert 0 <= stolen.share < 1.5, "ticks are of ten milliseconds, so a short block may round up"
    assert speed.turns.stolen_seconds() >= 0


@pytest.mark.parametrize(("share", "is_quiet"), [(0.0, True), (0.01, True), (0.2, False)])
def test_a_machine_is_quiet_while_all_its_processors_work_for_it(
    speed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, share: float, is_quiet: bool
) -> None:
    started = []

    class Worker:
        def __init__(self, command: Sequence[str]) -> None:
            started.append(command)

        def wait(self) -> None:
            started.append("done")

    monkeypatch.setattr(speed.turns, "StolenShare", lambda: made_up_share(share))
    monkeypatch.setattr(speed.turns.subprocess, "Popen", Worker)
    assert speed.turns.is_quiet() is is_quiet
    assert started.count("done") == (os.cpu_count() or 1)


@pytest.mark.slow
def test_what_a_machine_does_to_find_out_whether_it_is_quiet_ends_and_works(speed: SimpleNamespace) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert subprocess.run((sys.executable, "-S", "-c", speed.turns.BUSY), check=True).returncode == 0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before


@pytest.mark.parametrize(
    ("times", "in_use", "left_out"),
    [
        ([1.2, 1.25, 1.3], "helps", "does not help"),
        ([0.8, 0.9, 0.95], "does not help here", "would help"),
        ([1.0, 1.01, 0.99], "does not help here", "does not help"),
        ([0.9, 1.2, 1.3], "cannot be told", "cannot be told"),
        ([1.1, 1.2, 1.6], "helps", "does not help"),
    ],
)
def test_a_lever_is_judged_unless_its_rounds_lie_too_far_apart(
    speed: SimpleNamespace, times: List[float], in_use: str, left_out: str
) -> None:
    for is_in_use, verdict in ((True, in_use), (False, left_out)):
        name = next(iter(speed.levers.IN_USE if is_in_use else speed.levers.LEFT_OUT))
        series = {f"lever {name} float32": {"ours": [1.0] * 3, "moved": times}}
        what = f"| {speed.levers.LEVERS[name].what} | float32 |"
        [row] = [line for line in speed.rows.lever_table(series, in_use=is_in_use) if line.startswith(what)]
        assert row.endswith(f"| {verdict} |")


@pytest.mark.slow
def test_a_start_is_timed_to_the_first_call_of_the_network_and_to_its_end(
    speed: SimpleNamespace, tmp_path: Path
) -> None:
    assert speed.weights.make(TINY, tmp_path, [64])
    bench = speed.parts.Bench(TINY, tmp_path, None, 1, speed.turns.Patience(0))
    vars(bench)["said"] = {"dtype": "float32", "threads": 2, "torch": "2.0"}
    series = {name: ways for part in speed.parts.start(bench) for name, ways in part.items()}
    starts, memory, done = series["start"], series["start MiB"], series["first call"]
    assert list(done) == ["ours", "ours .ckpt"]
    assert starts["torch alone"][0] > 0
    for way in done:
        assert 0 < starts[way][0] < done[way][0]
        assert 0 < memory["torch alone"][0] < memory[way][0] <= series["first call MiB"][way][0]


def test_the_page_says_what_the_host_took(speed: SimpleNamespace) -> None:
    series = made_up(speed)
    assert "virtual machine" not in page_of(speed, series)
    series["whole"]["stolen"] = [0.01, 0.25]
    series["start"]["stolen"] = [0.0, 0.04]
    assert "more than 3% of its processors' time to others in 2 of 4 rounds, up to 25%;" in page_of(speed, series)


def test_weights_are_the_same_wherever_they_are_made(speed: SimpleNamespace, tmp_path: Path) -> None:
    from ldm.inference.checkpoint import read_state_dict

    folders = [tmp_path / "one", tmp_path / "other"]
    assert all(speed.weights.make(TINY, folder, [64]) for folder in folders)
    names = ("model.safetensors", "inputs.safetensors")
    one, other = ([(folder / name).read_bytes() for name in names] for folder in folders)
    assert one == other
    state, _ = read_state_dict(folders[0] / "model.safetensors")
    pickled, about = read_state_dict(folders[0] / "model.ckpt")
    assert about["global_step"] == speed.weights.GLOBAL_STEP
    assert state.keys() == pickled.keys()
    assert all(torch.equal(value, pickled[name]) for name, value in state.items())


def test_weights_are_kept_until_another_model_or_size_is_asked_for(speed: SimpleNamespace, tmp_path: Path) -> None:
    assert speed.weights.make(TINY, tmp_path, [64])
    assert not speed.weights.make(TINY, tmp_path, [64])
    assert speed.weights.make(TINY, tmp_path, [64, 128])
    assert "noisy-128" in speed.weights.inputs(TINY, [64, 128])


def test_too_small_a_disk_is_said_before_anything_is_written(speed: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"must have 1(,000){6} bytes free, has [\d,]+; try --folder"):
        speed.weights.check_room(tmp_path, 10**18)


def made_up(speed: SimpleNamespace) -> Dict[str, Dict[str, List[float]]]:
    """Series in which ours takes half of the others' time, at half of the limit where there is one."""
    series = {}
    for work in (*speed.rows.WORKS, *speed.rows.SMALL_WORKS):
        gflop = work.gflop or 1.0
        series[work.series] = {
            "limit": [2 * gflop, 2 * gflop],
            "ours": [1.0, 1.0],
            "plain": [2.0, 2.0],
            "diffusers": [2.0, 2.02],
        }
    for _, name in speed.rows.ACCURACIES:
        series[name] = {"ours": [0.01], "diffusers": [0.01], "between": [1e-6]}
    series["whole"] = {"ours": [10.0, 10.0], "diffusers": [19.0, 19.0]}
    series["whole processor"] = {"ours": [20.0, 20.0], "diffusers": [30.0, 30.0]}
    series["whole MiB"] = {"ours": [2500.0, 2500.0], "diffusers": [5000.0, 5000.0]}
    series["start"] = {"ours": [2.0, 2.1], "ours .ckpt": [2.5, 2.6], "diffusers": [6.0, 6.0], "torch alone": [1.0]}
    series["start MiB"] = {"ours": [2100.0], "ours .ckpt": [2200.0], "diffusers": [5000.0]}
    series["first call"] = {"ours": [4.0, 4.1], "ours .ckpt": [4.5, 4.6], "diffusers": [8.0, 8.0]}
    series["first call MiB"] = {"ours": [3100.0], "ours .ckpt": [3200.0], "diffusers": [6000.0]}
    series["overhead model"] = {"overlapped": [0.03, 0.03], "in turn": [0.05, 0.05]}
    series["overhead card"] = {"overlapped": [0.01, 0.01], "in turn": [0.1, 0.1]}
    series["large 2048"] = {"plain": [200.0], "strips": [220.0]}
    series["large MiB 2048"] = {"plain": [6000.0], "strips": [1400.0]}
    series["compiled unet bfloat16 256"] = {"ours": [1.0], "diffusers": [1.25]}
    for name, lever in speed.levers.LEVERS.items():
        for dtype in lever.dtypes:
            series[f"lever {name} {dtype}"] = {"ours": [1.0], "moved": [2.0]}
    return series


def page_of(speed: SimpleNamespace, series: Dict[str, Dict[str, List[float]]], *more: str) -> str:
    about = ["2 x processor", "avx2", *more, "2 threads", "torch 2.0"]
    text: str = speed.page.text({"part": {"date": "2026-01-01", "about": about, "series": series}})
    return text


def test_the_page_holds_ratios_seconds_and_the_share_of_the_limit(speed: SimpleNamespace) -> None:
    series = made_up(speed)
    text = page_of(speed, series)
    assert "2026-01-01, 2 x processor, avx2, 2 threads, torch 2.0." in text
    [row] = [line for line in text.splitlines() if line.startswith("| U-Net, bfloat16, 256 px")]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "1.00 s (1.00 to 1.00)",
        "2.01 s (2.00 to 2.02)",
        "0.50x (0.50 to 0.50)",
        *("0.68x", "yes"),
        "2.00 s (2.00 to 2.00)",
        "0.50x (0.50 to 0.50)",
        "50% (50% to 50%)",
    ]
    assert "| weights packed once for oneDNN | bfloat16 | 1.00 s | 2.00 s | 2.00x | helps |" in text
    assert "ours in the same rounds 1.00 s: 0.80 x." in text
    assert "; to import torch and no more 1.00 s |" in text
    assert "20.00 s (20.00 to 20.00), diffusers 30.00 s (30.00 to 30.00): 1.50x (1.50 to 1.50) faster |" in text
    assert "(2.50 to 2.60): 0.50 s (0.50 to 0.50) more | yes |" in text
    assert "| 2.31 GB; until that call was done 3.36 GB | yes |" in text
    assert "to the end of that call, `.safetensors` |  | 4.05 s (4.00 to 4.10); diffusers 8.00 s" in text
    assert "3.0% (3.0% to 3.0%); written in turn 5.0% (5.0% to 5.0%) | yes |" in text
    assert speed.rows.NOT_MEASURED not in text
    assert speed.rows.missed(series) == []


def test_the_page_of_a_processor_without_bfloat16_is_of_float32_alone(speed: SimpleNamespace) -> None:
    series = {name: ways for name, ways in made_up(speed).items() if "bfloat16" not in name}
    series["compiled unet float32 256"] = {"ours": [1.0], "diffusers": [1.25]}
    for _, name in speed.rows.ACCURACIES:
        series[name] = {"between": [1e-6]}
    text = page_of(speed, series, speed.parts.NO_BFLOAT16)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert not [row for row in rows if "bfloat16" in row or speed.rows.NOT_MEASURED in row]
    assert "one picture, float32, whole process |" in text
    assert "1.2x the weights, 5.11 GB |" in text
    assert "ours in the same rounds 1.00 s: 0.80 x." in text
    assert "| U-Net, 256 px | 1e-06 |" in rows
    assert "**no**" not in text
    assert "- bfloat16" not in text
    assert "None" not in text
    assert speed.rows.missed(series, ["float32"]) == []


def test_a_processor_without_bfloat16_is_measured_in_float32(speed: SimpleNamespace, tmp_path: Path) -> None:
    bench = speed.parts.Bench(TINY, tmp_path, None, 1, speed.turns.Patience(0))
    vars(bench)["said"] = {"dtype": "float32", "threads": 2, "torch": "2.0"}
    assert bench.dtypes == ("float32",)
    assert speed.parts.NO_BFLOAT16 in speed.parts.about(bench)
    with pytest.raises(speed.parts.NotHere, match="computes in float32: bfloat16 would be slower"):
        bench.ours("bfloat16")
    assert list(speed.parts.moved(bench, "attention")) == []
    with pytest.raises(speed.parts.NotHere, match="nothing to be compared with"):
        next(speed.parts.accuracy(bench))


@pytest.mark.parametrize(("more", "name"), [([], "benchmarks"), (["no fast bfloat16"], "benchmarks-float32")])
def test_a_page_is_written_with_its_plot_beside_the_others(
    speed: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: List[str], name: str
) -> None:
    monkeypatch.setattr(speed.page, "DOCS", tmp_path)
    (tmp_path / "images").mkdir()
    part = {"date": "2026-01-01", "about": ["2 x processor", *more], "series": {"start": {"ours": [2.0]}}}
    speed.page.write({"start": part})
    assert f"](images/{name}.svg)" in (tmp_path / f"{name}.md").read_text()
    assert xml.etree.ElementTree.parse(tmp_path / "images" / f"{name}.svg")


def test_the_page_tells_what_strips_save_and_cost(speed: SimpleNamespace) -> None:
    text = page_of(speed, made_up(speed))
    assert "4x less than at once | 1400 MiB, at once 6000 MiB: 4.29x less | yes |" in text
    assert "seconds of the processor |  | 220 s, at once 200 s: 1.10x |" in text


def test_a_wide_spread_is_said_in_its_row(speed: SimpleNamespace) -> None:
    series = made_up(speed)
    series["unet float32 512"]["diffusers"] = [2.0, 3.0]
    row = next(line for line in page_of(speed, series).splitlines() if line.startswith("| U-Net, float32, 512 px"))
    assert "2.50 s (2.00 to 3.00, spread 40%)" in row
    assert "0.42x (0.33 to 0.50, spread 40%)" in row


def test_a_ratio_is_taken_round_by_round(speed: SimpleNamespace) -> None:
    """The machine was twice as slow in the second round, for both."""
    found = speed.rows.ratio({"ours": [1.0, 2.0], "plain": [2.0, 4.0]}, "ours", "plain")
    assert (found.median, found.spread) == (0.5, 0.0)


def test_what_was_not_measured_is_said(speed: SimpleNamespace) -> None:
    text = page_of(speed, {})
    rows = [line for line in text.splitlines() if line.startswith(("| U-Net", "| `txt2img.py`"))]
    assert len(rows) >= 9
    assert all(speed.rows.NOT_MEASURED in row for row in rows)
    assert "| yes |" not in text
    assert "None" not in text
    assert speed.rows.missed({}) == []


def test_a_bar_that_is_missed_is_named(speed: SimpleNamespace) -> None:
    series = made_up(speed)
    series["unet bfloat16 256"]["ours"] = [1.5, 1.5]
    series["start"]["ours .ckpt"] = [3.5, 3.6]
    series["accuracy text"]["ours"] = [0.02]
    series["large MiB 2048"]["strips"] = [1501.0]
    large = "decoding a picture of 2048 px in strips, bfloat16: memory beside the weights"
    assert speed.rows.missed(series) == ["U-Net, bfloat16, 256 px", "text encoder", "the same from `.ckpt`", large]
    assert page_of(speed, series).count("**no**") == 4


def test_a_part_measured_again_replaces_its_series_alone(speed: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    speed.page.keep(file, "levers", ["torch 1"], {"lever a": {"ours": [1.0]}, "lever b": {"ours": [1.0]}})
    speed.page.keep(file, "levers", ["torch 2"], {"lever b": {"ours": [2.0]}})
    speed.page.keep(file, "whole", ["torch 2"], {"whole": {"ours": [9.0]}})
    kept = speed.page.read(file)
    assert speed.page.all_series(kept) == {
        "lever a": {"ours": [1.0]},
        "lever b": {"ours": [2.0]},
        "whole": {"ours": [9.0]},
    }
    assert kept["levers"]["about"] == ["torch 2"]


def test_the_plot_has_a_bar_for_each_way(speed: SimpleNamespace) -> None:
    series = made_up(speed)
    del series["unet float32 512"]["diffusers"]
    plot = xml.etree.ElementTree.fromstring(speed.plot.svg(series))
    colours = [each.get("fill") for each in plot.iter("{http://www.w3.org/2000/svg}rect")]
    drawn = {way: colours.count(colour) - 1 for way, colour in speed.plot.COLOURS.items()}  # the legend has one too
    assert drawn == {"ours": 4, "plain": 4, "diffusers": 3}
    texts = [each.text for each in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("50%, 1.00 s") == 4
    xml.etree.ElementTree.fromstring(speed.plot.svg({}))


@pytest.mark.slow
def test_operations_are_what_torch_counts(speed: SimpleNamespace) -> None:
    """On the meta device, where a forward of the large model takes no time."""
    counter = pytest.importorskip("torch.utils.flop_counter")
    from omegaconf import OmegaConf

    from ldm.inference.runtime import without_init
    from ldm.util import instantiate_from_config

    with without_init():
        model = instantiate_from_config(OmegaConf.load(ROOT / "configs/stable-diffusion/v1-inference.yaml").model)
    model = model.to("meta").eval().requires_grad_(False)
    expected = {(work.series.split()[0], int(work.series.split()[-1])): work for work in speed.rows.WORKS if work.gflop}
    assert len(expected) == 4
    for (network, size), work in expected.items():
        side = size // 8
        with counter.FlopCounterMode(display=False) as counted, torch.no_grad():
            if network == "unet":
                noisy, text = torch.empty(2, 4, side, side, device="meta"), torch.empty(2, 77, 768, device="meta")
                model.model.diffusion_model(noisy, torch.zeros(2, dtype=torch.int64, device="meta"), text)
            else:
                model.first_stage_model.decode(torch.empty(1, 4, side, side, device="meta"))
        assert counted.get_total_flops() / 1e9 == pytest.approx(work.gflop, abs=0.05), work.what


CHANGES = ("packing", "narrow", "filtering", "doubling", "gating", "attention", "in-place", "recall")
MORE_CHANGES = ("attention-by-head", "attention-in-slices", "channels-last")  # but for `compile`, which takes minutes


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CHANGES, *MORE_CHANGES])
def test_a_lever_changes_the_time_and_not_the_numbers(
    speed: SimpleNamespace, bench: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "attention" and not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        pytest.skip("this torch has no fused kernel")
    if name == "filtering":  # also of the small model's convolutions
        monkeypatch.setattr(convolving, "FILTERED_CHANNELS", 1)
        monkeypatch.setattr(convolving, "FILTERED_PLACES", {4: 1})
    given = speed.weights.inputs(TINY, [64])
    files = (bench.config, bench.model)
    for network, words in (("unet", (64,)), ("vae", (64,)), ("text", ()), ("sample", (64, 3, 1))):
        expected = call_of(files, network, [], given)(*words)
        with monkeypatch.context() as patch:
            for owner, patched in patched_names():
                patch.setattr(owner, patched, getattr(owner, patched))  # to be put back afterwards
            found = call_of(files, network, [name], given)(*words)
        # Sums in another order: the last bits of float32, which three guided steps make ten times larger.
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3), network


def patched_names() -> List[Tuple[Any, str]]:
    """What levers change outside of a model."""
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm.modules import attention
    from ldm.modules.diffusionmodules import openaimodel

    of_packing = [(packing, "KINDS"), *((convolving, name) for name in ("narrow", "FILTERED_PLACES"))]
    doubling = (packing.PackedDoublingConv2d, "forward")
    sums = [(module, "add_into") for module in (attention, openaimodel)]
    return [(attention, "attention_kernel"), (LatentDiffusion, "recalls"), doubling, *of_packing, *sums]


def test_every_lever_is_tested(speed: SimpleNamespace) -> None:
    elsewhere = [name for name, lever in speed.levers.LEVERS.items() if lever.env or name == "compile"]
    assert sorted(speed.levers.LEVERS) == sorted([*CHANGES, *MORE_CHANGES, *elsewhere])


def test_a_lever_without_its_object_is_an_error(speed: SimpleNamespace) -> None:
    with pytest.raises(SystemExit, match="has no attend_by_magic: this lever has to be written anew"):
        speed.levers.replace(speed.levers, "attend_by_magic", None)


def test_a_server_is_started_with_what_its_levers_need(speed: SimpleNamespace, bench: Any) -> None:
    server = bench.ours("float32", ["huge-pages", "malloc"])
    assert {"about", "limit", "peak", "time", "write"} == set(server.questions)
    assert server.ask("time", "text") > 0
    assert server.ask("peak") > 50
    server.close()
    with pytest.raises(SystemExit, match="huge-pages need THP_MEM_ALLOC_ENABLE=1 set before the start"):
        speed.levers.move(None, ["huge-pages"])


def test_what_is_for_the_first_call_is_measured_on_a_new_process_each_time(
    speed: SimpleNamespace, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: List[Tuple[object, ...]] = []
    monkeypatch.setattr(speed.talk.Server, "ask", recorded(speed.talk.Server.ask, asked))
    [(name, lever)] = [each for each in speed.levers.LEVERS.items() if each[1].first_call]
    monkeypatch.setitem(speed.levers.LEVERS, name, dataclasses.replace(lever, dtypes=("float32",)))
    [found] = speed.parts.moved(bench, name)
    ways = found[f"lever {name} float32"]
    assert len(ways["ours"]) == len(ways["moved"]) == bench.rounds
    timed = [server for server, question in asked if question == "time"]
    assert len(timed) == len(set(timed)) == 2 * (bench.rounds + 1)


def recorded(ask: Any, asked: List[Tuple[object, ...]]) -> Any:
    def asking(self: Any, question: str, *words: object) -> Any:
        asked.append((self, question))
        return ask(self, question, *words)

    return asking


@pytest.mark.slow
def test_diffusers_computes_the_same(speed: SimpleNamespace, bench: Any) -> None:
    """Its programs run where the tests do, if it is there; nothing of ours is in them."""
    pytest.importorskip("diffusers")
    peer = dataclasses.replace(bench, peer=Path(sys.executable))
    peer.prepare()
    [found] = speed.parts.accuracy(peer)
    assert {name for _, name in speed.rows.ACCURACIES} == set(found)
    # float32 sums in another order; the bar of the page is for bfloat16, which few processors have.
    assert all(max(ways["between"]) < 1e-4 for ways in found.values())
    assert all(("ours" in ways) == ("bfloat16" in peer.dtypes) for ways in found.values())


@pytest.mark.slow
def test_the_small_model_is_measured_without_diffusers(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/speed.py", "--quick", "--peer=none", f"--config={TINY}"]
    done = subprocess.run(
        [*command, f"--folder={tmp_path}", "--only", "small"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "small unet float32 64: ours " in done.stdout
    kept = json.loads((tmp_path / "quick.json").read_text())
    assert len(kept["small"]["series"]["small vae float32 64"]["plain"]) == 2


@pytest.mark.slow
def test_a_large_picture_is_decoded_at_once_and_in_strips(speed: SimpleNamespace, bench: Any) -> None:
    assert speed.parts.LARGE_SIZE == speed.rows.LARGE_SIZE > speed.parts.QUICK_LARGE_SIZE
    series = {name: ways for found in speed.parts.large(bench, 128) for name, ways in found.items()}
    assert set(series) == {"large 128", "large MiB 128"}
    for name, ways in series.items():
        assert set(ways) == {"plain", "strips"}, name
        assert all(len(values) == 1 and values[0] > 0 for values in ways.values()), name


def test_diffusers_starts_with_what_the_user_has_set_and_nothing_of_ours() -> None:
    code = "import os; before = dict(os.environ); import speed; print(dict(os.environ) == before)"
    folder = ROOT / "benchmarks"
    assert subprocess.check_output((sys.executable, "-c", code), cwd=folder, text=True) == "True\n"


def test_without_diffusers_it_says_what_to_type(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/speed.py", f"--peer={tmp_path / 'python'}", f"--folder={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "tools/venv.sh peers" in done.stderr
    assert "--peer none" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_speeds_the_large_model_up_does_not_slow_the_small_one_down(
    speed: SimpleNamespace, tmp_path: Path, dtype: str
) -> None:
    """Ratios of samples taken in turns, never seconds.

    A forward takes a millisecond or a few, and whatever else this machine does falls on either way: medians of the same
    code differ by up to a tenth. NOISE is the least that can be told from that. One attempt in which the machine left
    both ways in peace is enough to show that ours is not slower: if it were, by a fifth or more, no attempt would.
    """
    bench = speed.parts.Bench(TINY, tmp_path, None, 7, speed.turns.Patience(0))
    speed.weights.make(speed.parts.SMALL_CONFIG, tmp_path / "small", [speed.parts.SMALL_SIZE])
    ratios: Dict[str, List[float]] = {}
    for _ in range(4):
        try:
            series = {name: ways for found in speed.parts.small(bench, [dtype]) for name, ways in found.items()}
        except speed.parts.NotHere as reason:
            pytest.skip(str(reason))
        for name, ways in series.items():
            ratios.setdefault(name, []).append(statistics.median(ways["ours"]) / statistics.median(ways["plain"]))
        if max(map(min, ratios.values())) <= NOISE:
            break
    assert len(ratios) == 3
    assert {name: found for name, found in ratios.items() if min(found) > NOISE} == {}


def call_of(files: Sequence[Path], network: str, moved: List[str], given: Any) -> Callable[..., Any]:
    """One forward of a network of a model in float32, with some levers moved."""
    from on_processor import levers, our_server

    from ldm.inference.pipeline import Pipeline
    from ldm.inference.runtime import Precision

    pipeline = Pipeline.load(*files, device="cpu", precision=Precision.FULL)
    levers.move(pipeline, moved)
    return torch.inference_mode()(our_server.networks(pipeline.model, given)[network])
