"""What a file lists is what was saved, whatever wrote it; a file that ends early or lies about itself is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch

from ldm.errors import WeightsError
from ldm.inference.contents import read_contents
from ldm.inference.tensors import TensorReader

safetensors = pytest.importorskip("safetensors.torch")


def tensors():
    """One tensor of each kind that files hold."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return {
        "float32": base.clone(),
        "float64": torch.randn(3, dtype=torch.float64),
        "float16": torch.randn(5, 1, 2).half(),
        "bfloat16": torch.randn(7).bfloat16(),
        "int64": torch.arange(77)[None],
        "int32": torch.arange(4, dtype=torch.int32),
        "int16": torch.arange(4, dtype=torch.int16),
        "int8": torch.arange(-3, 4, dtype=torch.int8),
        "uint8": torch.arange(9, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


def views():
    """Tensors that share memory or are not laid out row by row, which only torch.save keeps."""
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "transposed": base.t(),
        "row": base[2],
        "column": base[:, 3],
        "expanded": torch.arange(3.0)[:, None].expand(3, 5),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }


def save(state, path, form):
    if form == "safetensors":
        safetensors.save_file(state, str(path), metadata={"global_step": "470000"})
    else:
        torch.save(state, str(path), _use_new_zipfile_serialization=form == "zip")
    return path


def read_all(path, *, mapped=None):
    contents = read_contents(path)
    with TensorReader(contents, mapped=mapped) as reader:
        return {name: reader.read(stored) for name, stored in contents.tensors.items()}


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_tensor_comes_back_as_it_was_saved(tmp_path, form, mapped):
    state = tensors() if form == "safetensors" else {**tensors(), **views()}
    found = read_all(save(state, tmp_path / "model", form), mapped=mapped)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor.detach()), name


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_the_state_dict_is_found_wrapped_or_bare_and_the_step_is_told(tmp_path, form):
    state = OrderedDict(w=torch.ones(2))
    wrapped = {"epoch": 3, "global_step": 470000, "state_dict": state, "optimizer_states": [{"m": torch.zeros(9)}]}
    contents = read_contents(save(wrapped, tmp_path / "wrapped.ckpt", form))
    assert (list(contents.tensors), contents.global_step) == (["w"], 470000)
    contents = read_contents(save({**state, "note": "bare"}, tmp_path / "bare.ckpt", form))
    assert (list(contents.tensors), contents.global_step) == (["w"], None)


def test_a_safetensors_file_tells_its_step_in_its_metadata(tmp_path):
    path = save({"w": torch.ones(2)}, tmp_path / "model.safetensors", "safetensors")
    assert read_contents(path).global_step == 470000


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, form):
    path = save({name: tensor for name, tensor in tensors().items() if tensor.numel()}, tmp_path / "whole", form)
    data = path.read_bytes()
    for end in range(len(data) - 1, 0, -max(1, len(data) // 211)):
        (tmp_path / "part").write_bytes(data[:end])
        with pytest.raises(WeightsError):
            read_contents(tmp_path / "part")


def test_a_cut_safetensors_says_how_many_bytes_it_lacks(tmp_path):
    path = save({"w": torch.ones(1000)}, tmp_path / "model.safetensors", "safetensors")
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        WeightsError, match=f"is cut short: it has {whole - 1000:,} bytes, of the {whole:,} that its header"
    ):
        read_contents(path)


def test_a_safetensors_with_something_behind_it_is_damaged(tmp_path):
    path = save({"w": torch.ones(4)}, tmp_path / "model.safetensors", "safetensors")
    path.write_bytes(path.read_bytes() + b"12345")
    with pytest.raises(WeightsError, match="5 bytes follow the last tensor"):
        read_contents(path)


def header(**entry):
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F8_E4M3"},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": ["2"]},
        {"shape": [2.0]},
        {"data_offsets": [0, 9]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [0]},
        {"data_offsets": None},
    ],
)
def test_a_safetensors_header_that_makes_no_sense_is_refused(tmp_path, entry):
    (tmp_path / "model.safetensors").write_bytes(header(**entry))
    with pytest.raises(WeightsError, match="its safetensors header cannot be read"):
        read_contents(tmp_path / "model.safetensors")


def test_a_safetensors_header_that_is_no_json_is_refused(tmp_path):
    for text in (b'{"w":', b"{" + b"[" * 100_000, b'{"w": 5}', b'{"\xff": 5}'):
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(WeightsError, match="its safetensors header cannot be read"):
            read_contents(tmp_path / "model.safetensors")


def rewrite_zip(path, change, compression=zipfile.ZIP_STORED):
    """The same archive with entries changed: change(name, data) -> data or None."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: change(name.split("/", 1)[1], archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            if data is not None:
                archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: None if name == "data/0" else data, "the tensor w lies outside of its block '0'"),
        (lambda name, data: data[:-4] if name == "data/0" else data, "the tensor w lies outside of its block '0'"),
        (lambda name, data: b"\x80\x02N." if name == "data.pkl" else data, "holds a NoneType, not named tensors"),
        (lambda name, data: b"\x80\x02}." if name == "data.pkl" else data, "holds no tensors .* which has: nothing"),
        (lambda name, data: data[:10] if name == "data.pkl" else data, "is damaged"),
    ],
)
def test_a_zip_that_lies_about_itself_is_refused(tmp_path, change, message):
    path = save({"w": torch.ones(100)}, tmp_path / "model.ckpt", "zip")
    rewrite_zip(path, change)
    with pytest.raises(WeightsError, match=message):
        read_contents(path)


def test_a_checkpoint_of_a_big_endian_machine_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(WeightsError, match="is from a big-endian machine"):
        read_contents(tmp_path / "model.ckpt")


def test_a_zip_packed_anew_with_compression_is_refused(tmp_path):
    path = save({"w": torch.ones(100)}, tmp_path / "model.ckpt", "zip")
    rewrite_zip(path, lambda name, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="packed anew with compression"):
        read_contents(path)


def test_a_checkpoint_of_something_else_is_refused_with_what_it_has(tmp_path):
    path = save({"model": {"w": torch.ones(2)}, "args": 3}, tmp_path / "model.ckpt", "zip")
    with pytest.raises(WeightsError, match="holds no tensors under 'state_dict' or at its top, which has: model, args"):
        read_contents(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning warns of its surroundings, which are not what is tested
def test_a_checkpoint_that_lightning_wrote_is_read(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self, rate):
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, _):
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)

    saving = lightning.callbacks.ModelCheckpoint(dirpath=str(tmp_path), save_last=True)
    trainer = lightning.Trainer(
        max_epochs=2, callbacks=[saving], logger=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    module = Module(1e-3)
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(6, 2), batch_size=2))
    contents = read_contents(tmp_path / "last.ckpt")
    assert contents.global_step == 6
    found = read_all(tmp_path / "last.ckpt")
    assert torch.equal(found["layer.weight"], module.layer.weight.detach())


def test_contents_are_read_where_torch_cannot_be_imported(tmp_path):
    files = [save({"w": torch.ones(3, 2)}, tmp_path / form, form) for form in ("zip", "legacy", "safetensors")]
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from pathlib import Path; from ldm.inference.contents import read_contents\n"
        "for file in sys.argv[1:]: print(read_contents(Path(file)).tensors['w'].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["(3, 2)"] * 3
