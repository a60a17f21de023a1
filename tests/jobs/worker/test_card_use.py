"""How busy a card is can be read from what the sites' tools print, whole or broken; no output is ever an error."""

from __future__ import annotations

import os
import stat

import pytest

from jobs.worker.card_use import parse_nvidia, parse_table, parse_uses, run_tool, sample

DCU_TABLE = """\
============================ System Management Interface =============================
======================================================================================
DCU  Temp   AvgPwr  Fan   Perf    PwrCap  VRAM%  DCU%
0    47.0c  158.0W  0.0%  manual  450.0W   61%   37%
1    44.0c  20.0W   0.0%  manual  450.0W    0%   0%
2    N/A    N/A     N/A   N/A     N/A      N/A   N/A
======================================================================================
=================================End of SMI Log=======================================
"""

HCU_TABLE = """\
================================= System Management Interface ==================================
HCU     Temp     AvgPwr     Perf     PwrCap     VRAM%      HCU%      Mode
0       41.0C    83.0W      auto     400.0W     0%         99.0%     Normal
10      42.0C    84.0W      auto     400.0W     0%         5.5%      Normal
"""

ROCM_6_TABLE = """\
====================================== Concise Info ======================================
Device  Node  IDs              Temp    Power  Partitions          SCLK    MCLK    Fan  Perf  PwrCap  VRAM%  GPU%
              (DID,     GUID)  (Edge)  (Avg)  (Mem, Compute, ID)
==========================================================================================
0       1     0x744c,   26967  38.0°C  20.0W  N/A, N/A, 0         13Mhz   96Mhz   0%   auto  265.0W  1%     42%
"""

JSON = '{"card0": {"HCU use (%)": "27.5"}, "card1": {"HCU use (%)": "0.0"}}'
WITH_MORE = '{"card0":{"DCU memory use (%)":"61","DCU use (%)":"58"},"card1":{"GPU use (%)":7}}'
BROKEN = '{"card0": {"Temperature (Sensor edge) (C)": "40.0c" "DCU use (%)": "33 %"} "card1": {"DCU use (%)": "4"'
TEXT = "HCU[0]\t\t: HCU use (%): 15.0\nHCU[1]\t\t: HCU use (%): 0.0\nHCU[0]\t\t: vram Total Used Memory (MiB): 3\n"


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        (JSON, {"0": 27.5, "1": 0.0}),
        (WITH_MORE, {"0": 58.0, "1": 7.0}),
        (BROKEN, {"0": 33.0, "1": 4.0}),
        (TEXT, {"0": 15.0, "1": 0.0}),
        ('{"card0": {"HCU use (%)": "N/A"}}', {}),
        ("", {}),
        (None, {}),
        ("Traceback (most recent call last):\nKeyError: 'card0'\n", {}),
    ],
    ids=["json", "more fields", "broken", "text", "unknown", "empty", "absent", "crashed"],
)
def test_uses_are_found_in_what_showuse_prints(text, uses):
    assert parse_uses(text) == uses


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        (DCU_TABLE, {"0": 37.0, "1": 0.0}),
        (HCU_TABLE, {"0": 99.0, "10": 5.5}),
        (ROCM_6_TABLE, {"0": 42.0}),
        ("0 1 2\n", {}),
        ("", {}),
        (None, {}),
    ],
    ids=["DCU", "HCU", "ROCm 6", "no header", "empty", "absent"],
)
def test_uses_are_found_in_the_table(text, uses):
    assert parse_table(text) == uses


@pytest.mark.parametrize(
    ("card", "use"),
    [("0", 37.0), ("1", None), ("3", None), ("GPU-8932f937", 37.0), ("GPU-ffff", None), ("MIG-1", None)],
)
def test_uses_are_found_in_what_nvidia_smi_prints(card, use):
    text = "0, GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, 37\n1, GPU-1111, [N/A]\nFailed to initialize NVML: Unknown\n"
    assert parse_nvidia(text, card) == use


def test_the_first_tool_that_knows_the_card_is_believed():
    answers = {("hy-smi",): HCU_TABLE, ("rocm-smi", "--showuse", "--json"): JSON, ("nvidia-smi",): "1, GPU-1, 3"}
    asked = []

    def tool(command):
        asked.append(tuple(command))
        return answers.get(tuple(command), answers.get(tuple(command)[:1]) if "nvidia" in command[0] else None)

    assert sample("0", tool) == 99.0
    assert asked == [("hy-smi", "--showuse", "--json"), ("hy-smi",)]
    assert sample("1", tool) == 0.0
    assert sample("7", tool) is None


def test_a_process_without_a_card_has_no_use():
    assert sample("", lambda command: JSON) is None


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_real_tool_is_run_whatever_it_ends_with(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert sample("0") is None
    program(tmp_path, "hy-smi", f"cat <<'END'\n{BROKEN}\nEND\necho warning >&2; exit 1")
    assert sample("0") == 33.0
    program(tmp_path, "hy-smi", f"case $1 in --showuse) exit 2;; esac; cat <<'END'\n{DCU_TABLE}END")
    assert sample("0") == 37.0


def test_a_tool_that_hangs_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr("jobs.worker.card_use.TOOL_SECONDS", 0.2)
    program(tmp_path, "hy-smi", "exec sleep 60")
    assert run_tool(["hy-smi"]) is None
