"""Large pictures through the first stage: what the plain way gives, no seams, and little memory."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm.inference.packing import can_pack, pack
from ldm.modules.diffusionmodules import large
from ldm.modules.diffusionmodules.large import decode_in_strips, encode_in_strips, largest_map
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.diffusionmodules.strips import spans

ROOT = Path(__file__).resolve().parents[4]
TINY: Dict[str, Any] = OmegaConf.to_container(
    OmegaConf.load(ROOT / "tests" / "tiny.yaml").model.params.first_stage_config.params.ddconfig
)
CONFIGS: Dict[str, Dict[str, Any]] = {
    "tiny": TINY,
    "as SD v1, a quarter as wide": {**TINY, "ch": 32, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2},
    "attention at a level": {**TINY, "ch_mult": [1, 2], "resolution": 32, "attn_resolutions": [16]},
    "no attention, no convolutions between levels": {**TINY, "attn_type": "none", "resamp_with_conv": False},
    "tanh, few groups": {**TINY, "tanh_out": True, "ch_mult": [1, 2, 3], "norm_groups": 8},
}
STRIP_ELEMENTS = [1, 2**11, 2**14, 2**30]  # from two rows each to one strip of all
ROOMS = [0.0, 1.25, 100.0]  # nothing kept beside the map, some rows, everything


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def half(kind: Any, dims: Dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return kind(**dims).eval().requires_grad_(False).to(dtype)


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    """The root of the mean square, as a share of the picture's deviation."""
    return float((got.double() - exact).pow(2).mean().sqrt() / exact.std())


def worst_differences(network: Any, in_strips: Any, channels: int, factor: int) -> List[float]:
    """Of a half of the first stage and the same in strips, for more and more room and maps of several sizes."""
    found = []
    for room, (batch, height, width) in zip(ROOMS, [(1, 5, 3), (1, 1, 2), (2, 4, 4)]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(large, "ROOM", room)
            x = noise(batch, channels, height * factor, width * factor)
            found.append(float((in_strips(network, x) - network(x)).abs().max()))
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("strip", STRIP_ELEMENTS)
def test_a_latent_of_any_size_is_decoded_as_the_plain_way_does(name, strip, monkeypatch):
    monkeypatch.setattr(large, "STRIP_ELEMENTS", strip)
    monkeypatch.setattr(large, "STRIPS", 1)
    # Thirty layers of sums in float64, in another order: 1e-16 each, and of a group of two places, whose difference it
    # is divided by, some hundred times that.
    assert max(worst_differences(half(Decoder, CONFIGS[name]), decode_in_strips, 4, factor=1)) <= 1e-11


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("strip", STRIP_ELEMENTS)
def test_a_picture_is_encoded_as_the_plain_way_does(name, strip, monkeypatch):
    monkeypatch.setattr(large, "STRIP_ELEMENTS", strip)
    monkeypatch.setattr(large, "STRIPS", 1)
    encoder = half(Encoder, CONFIGS[name])
    assert max(worst_differences(encoder, encode_in_strips, 3, factor=2 ** (len(encoder.down) - 1))) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_worse_than_the_plain_ways(dtype, monkeypatch):
    """Against float64: both round every layer's result alike, so their errors are of one size; 1.5 is for chance."""
    monkeypatch.setattr(large, "STRIP_ELEMENTS", 2**12)
    decoder, z = half(Decoder, TINY, dtype), noise(1, 4, 8, 8, dtype=dtype)
    try:
        plain = decoder(z)
    except RuntimeError as reason:
        pytest.skip(f"torch {torch.__version__} on this CPU: {reason}")
    exact = copy.deepcopy(decoder).double()(z.double())
    assert error(decode_in_strips(decoder, z), exact) <= 1.5 * error(plain, exact)


def test_no_seam_shows_between_strips():
    """The error in float32 of the rows on both sides of a cut is that of the other rows; 20 % for chance."""
    decoder, z = half(Decoder, TINY, torch.float32), noise(1, 4, 16, 16, dtype=torch.float32)
    rows = (decode_in_strips(decoder, z) - decoder.double()(z.double())).pow(2).mean(dim=(0, 1, 3))
    cuts = [first for first, _ in spans(128, 128 // large.STRIPS)][1:]
    assert len(cuts) == large.STRIPS - 1
    beside = torch.zeros(128, dtype=torch.bool)
    beside[[row for cut in cuts for row in (cut - 1, cut)]] = True
    assert float(rows[beside].mean().sqrt()) <= 1.2 * float(rows[~beside].mean().sqrt())


def test_tiles_decoded_alone_would_have_seams():
    """What strips are for: the same halves of a latent, normalised each by itself, are far off."""
    decoder, z = half(Decoder, TINY), noise(1, 4, 8, 8)
    tiles = torch.cat([decoder(part) for part in z.split(4, dim=2)], dim=2)
    assert error(tiles, decoder(z)) > 0.1


@pytest.mark.skipif(not can_pack(torch.float32), reason="this torch takes no packed weights")
def test_packed_layers_give_the_same(monkeypatch):
    monkeypatch.setattr(large, "STRIP_ELEMENTS", 2**13)
    decoder, z = half(Decoder, TINY, torch.float32), noise(1, 4, 9, 6, dtype=torch.float32)
    expected = decoder(z)
    pack(decoder, torch.float32)
    # Thirty layers of sums of 300 products near 1 in float32.
    assert torch.allclose(decode_in_strips(decoder, z), expected, rtol=0, atol=1e-4)


def test_the_largest_map_is_the_one_that_a_level_begins_with():
    dims = {**TINY, "ch": 32, "ch_mult": [1, 2, 4, 4]}
    decoder, encoder = half(Decoder, dims), half(Encoder, dims)
    assert largest_map(decoder.up, 64 * 64) == 64 * 64 * 64  # twice the channels, on the way to the picture's size
    assert largest_map(encoder.down, 64 * 64) == 32 * 64 * 64


PEAK = """
import json, sys, torch
from pathlib import Path
from ldm.modules.diffusionmodules.large import decode_in_strips
from ldm.modules.diffusionmodules.model import Decoder

def peak():
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) / 1024

torch.set_num_threads(1)
decoder = Decoder(**json.loads(sys.argv[2])).eval().requires_grad_(False)
decode = decoder if sys.argv[1] == "plain" else lambda z: decode_in_strips(decoder, z)
with torch.no_grad():
    decode(torch.zeros(1, 4, 8, 8))
    before = peak()
    decode(torch.zeros(1, 4, 64, 64))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_is_a_fraction_of_the_plain_ways():
    """Of maps of 32 MB: a small picture's, of which strips are a larger share than of those that they are for."""
    dims = {**TINY, "ch_mult": [1, 2, 2, 2]}
    taken = {}
    for way in ("plain", "strips"):
        command = [sys.executable, "-c", PEAK, way, json.dumps(dims)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        taken[way] = float(done.stdout)
    assert taken["strips"] < taken["plain"] / 2, taken
