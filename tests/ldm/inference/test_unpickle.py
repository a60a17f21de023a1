"""A checkpoint's pickle runs nothing: hostile ones are refused by name, whatever way they try."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections import OrderedDict

import pytest
import torch

from ldm.errors import WeightsError
from ldm.inference import unpickle
from ldm.inference.contents import read_contents
from ldm.inference.unpickle import PickledTensor, load_pickle

PROTO = b"\x80\x02"
LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint"


def name(module, qualname):
    return f"c{module}\n{qualname}\n".encode()


def text(value):
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def call(module, qualname, *args):
    """Pickle code that calls a global with strings, or with what other pickle code leaves."""
    values = b"".join(text(arg) if isinstance(arg, str) else arg for arg in args)
    return name(module, qualname) + b"(" + values + b"tR"


def load(code):
    return load_pickle(io.BytesIO(PROTO + code + b"."), "model.ckpt").value


def hostile(canary):
    shell, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": call("os", "system", shell),
        "posix.system": call("posix", "system", shell),
        "subprocess.Popen": call("subprocess", "Popen", shell),
        "subprocess.check_output": call("subprocess", "check_output", shell),
        "builtins.eval": call("builtins", "eval", python),
        "builtins.exec": call("builtins", "exec", python),
        "__builtin__.eval": call("__builtin__", "eval", python),
        "builtins.getattr": call("builtins", "getattr", call("builtins", "__import__", "os"), "system"),
        "builtins.__import__": call("builtins", "__import__", "os"),
        "functools.partial": call("functools", "partial", name("os", "system"), shell),
        "pty.spawn": call("pty", "spawn", shell),
        "runpy.run_path": call("runpy", "run_path", str(canary)),
        "pathlib.PosixPath.touch": call("pathlib", "PosixPath.touch", str(canary)),
        "collections.OrderedDict.fromkeys": call("collections", "OrderedDict.fromkeys", shell),
        "copyreg._reconstructor": call("copyreg", "_reconstructor", name("os", "system"), shell),
        "copyreg.add_extension": call("copyreg", "add_extension", "os", "system"),
        "torch.load": call("torch", "load", str(canary)),
        "torch.hub.load": call("torch.hub", "load", str(canary), "model"),
        "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", shell),
        "torch.jit.unsupported_tensor_ops.execWrapper": call("torch.jit.unsupported_tensor_ops", "execWrapper", python),
        "torch._utils._rebuild_tensor_v2.__globals__": name("torch._utils", "_rebuild_tensor_v2.__globals__"),
        "torch._tensor._rebuild_from_type_v2": call("torch._tensor", "_rebuild_from_type_v2", name("os", "system")),
        "numpy.load": call("numpy", "load", str(canary)),
        "numpy.testing._private.utils.runstring": call("numpy.testing._private.utils", "runstring", python),
        # behind a stub, as its argument, its state, its key
        "os.system as an argument": call(LIGHTNING, "ModelCheckpoint", call("os", "system", shell)),
        "os.system as a state": call(LIGHTNING, "ModelCheckpoint") + call("os", "system", shell) + b"b",
        "os.system in an object array": call("numpy.core.multiarray", "_reconstruct", call("os", "system", shell)),
        "os.system as an item": call("collections", "OrderedDict") + text("key") + call("os", "system", shell) + b"s",
        # the other opcodes that call
        "os.system by INST": b"(" + text(shell) + b"ios\nsystem\n",
        "os.system by OBJ": b"(" + name("os", "system") + text(shell) + b"o",
        "os.system by NEWOBJ": name("os", "system") + text(shell) + b"\x85\x81",
        "os.system by STACK_GLOBAL": text("os") + text("system") + b"\x93" + text(shell) + b"\x85R",
    }  # fmt: skip


KINDS = sorted(hostile("canary"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_pickle_is_refused_by_name_and_does_not_run(tmp_path, kind):
    canary = tmp_path / "canary"
    with pytest.raises(WeightsError, match="asks to run") as raised:
        load(hostile(canary)[kind])
    assert not canary.exists()
    first = kind.split(" ")[0]
    assert first in str(raised.value) or first == "builtins.getattr"


def test_a_hostile_name_cannot_break_the_line_of_the_error():
    with pytest.raises(WeightsError, match=r"asks to run os\.\?\?\[2Jsystem") as raised:
        load(text("os") + text("\n\x1b[2Jsystem" + "x" * 10_000) + b"\x93")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("kind", ["os.system", "builtins.eval", "os.system by INST", "os.system as an item"])
def test_the_same_pickles_run_where_nothing_stops_them(tmp_path, kind):
    canary = tmp_path / "canary"
    pickle.loads(PROTO + hostile(canary)[kind] + b".")
    assert canary.exists()


@pytest.mark.parametrize("kind", ["os.system", "torch.storage._load_from_bytes"])
def test_a_hostile_checkpoint_file_is_refused_in_both_formats(tmp_path, kind):
    canary = tmp_path / "canary"
    code = PROTO + hostile(canary)[kind] + b"."
    with zipfile.ZipFile(tmp_path / "new.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", code)
    torch.save({}, str(tmp_path / "old.ckpt"), _use_new_zipfile_serialization=False)
    magic = (tmp_path / "old.ckpt").read_bytes()[:15]
    (tmp_path / "old.ckpt").write_bytes(magic + code)
    for file in ("new.ckpt", "old.ckpt"):
        with pytest.raises(WeightsError, match=rf"{file} asks to run {kind}.*use a .safetensors"):
            read_contents(tmp_path / file)
    assert not canary.exists()


@pytest.mark.parametrize(
    "code",
    [
        name(LIGHTNING, "ModelCheckpoint"),
        call(LIGHTNING, "ModelCheckpoint", "args") + text("state") + b"b",
        name(LIGHTNING, "ModelCheckpoint") + b")\x81" + text("state") + b"b",
        call("lightning.fabric.utilities.data", "AttributeDict") + text("key") + text("value") + b"s",
        call("torchmetrics.aggregation", "MeanMetric"),
        call("pytorch_lightning", "os.system", "touch canary"),
        call("numpy.core.multiarray", "scalar", call("numpy", "dtype", "f8") + text("state") + b"b", "bytes"),
        call(
            "numpy._core.multiarray", "scalar", call("numpy", "dtype", "f8"), call("_codecs", "encode", "x", "latin1")
        ),
        call("torch", "Size", ")") + b"0" + name("torch", "float32"),
    ],
    ids=lambda code: code[:60].decode("latin1").replace("\n", "."),
)
def test_what_training_leaves_beside_the_weights_becomes_a_stub_that_does_nothing(code):
    stub = load(code)
    assert isinstance(stub, unpickle._Inert) or issubclass(stub, unpickle._Inert)


def test_stubs_of_two_classes_are_two_keys():
    keys = name(LIGHTNING, "ModelCheckpoint") + text("a") + b"s" + name("pytorch_lightning", "Timer") + text("b") + b"s"
    assert sorted(load(b"}" + keys).values()) == ["a", "b"]


def storage(dtype="FloatStorage", key="0", numel=6):
    return b"(" + text("storage") + name("torch", dtype) + text(key) + text("cpu") + b"K" + bytes([numel]) + b"tQ"


def tensor(offset=0, shape=(2, 3), stride=(3, 1)):
    sizes = b"".join(b"(" + b"".join(b"K" + bytes([size]) for size in sizes) + b"t" for sizes in (shape, stride))
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage() + b"K" + bytes([offset]) + sizes + b"\x89}tR"


def test_a_tensor_is_read_as_the_place_where_it_lies():
    found = load(tensor(offset=1, shape=(5,), stride=(1,)))
    assert isinstance(found, PickledTensor)
    assert (found.storage.dtype, found.storage.key, found.storage.numel) == ("float32", "0", 6)
    assert (found.offset, found.shape, found.stride) == (1, (5,), (1,))


@pytest.mark.parametrize(
    "code",
    [
        text("not a tuple") + b"Q",
        b"(" + text("module") + storage() + b"tQ",
        b"(" + text("storage") + text("FloatStorage") + text("0") + text("cpu") + b"K\x06tQ",
        b"(" + text("storage") + name("torch", "FloatStorage") + b"K\x00" + text("cpu") + b"K\x06tQ",
        b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + text("6") + b"tQ",
        call("torch._utils", "_rebuild_tensor_v2", "no storage", b"K\x00", b")", b")"),
        call("torch._utils", "_rebuild_tensor_v2", storage(), b"K\x00", b"K\x02\x85", b")"),
        call("torch._utils", "_rebuild_tensor_v2", storage(), b"J\xff\xff\xff\xff", b")", b")"),
        call("torch._utils", "_rebuild_tensor_v2", storage(), b"K\x00", b"\x88\x85", b"K\x01\x85"),
        text("called") + b")R",
        b"\x82\x01",
        b"",
        b"0",
    ],
)
def test_a_pickle_that_makes_no_sense_is_damaged(code):
    with pytest.raises(WeightsError, match="is damaged or no checkpoint"):
        load(code)


@pytest.mark.parametrize(
    ("target", "state"),
    [
        (name("torch._utils", "_rebuild_tensor_v2"), b"}" + text("polluted") + text("x") + b"s"),
        (name("torch._utils", "_rebuild_tensor_v2"), b"N}" + text("__defaults__") + b")s\x86"),
        (name(LIGHTNING, "ModelCheckpoint"), b"N}" + text("__setstate__") + text("x") + b"s\x86"),
        (name("collections", "OrderedDict"), b"N}" + text("items") + text("x") + b"s\x86"),
        (name("torch", "FloatStorage"), b"N}" + text("dtype") + text("float64") + b"s\x86"),
    ],
)
def test_a_pickle_that_rewrites_what_it_is_given_changes_nothing_for_the_next(target, state):
    try:
        load(target + state + b"b0N")
    except WeightsError as error:
        assert "is damaged" in str(error)  # noqa: PT017 - either end is right, what follows must hold in both
    assert load(tensor()).storage.dtype == "float32"
    assert not hasattr(unpickle._Inert.__setstate__, "upper")
    assert list(OrderedDict(a=1).items()) == [("a", 1)]
    assert not hasattr(unpickle._tensor_function(), "polluted")


def test_an_ordered_dict_with_methods_of_its_own_is_read_by_dicts(tmp_path):
    state = call("collections", "OrderedDict") + text("w") + tensor() + b"s" + b"}" + text("items") + text("no") + b"sb"
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", PROTO + state + b".")
        archive.writestr("archive/data/0", bytes(24))
    assert list(read_contents(tmp_path / "model.ckpt").tensors) == ["w"]


def test_damage_anywhere_gives_a_weights_error_or_a_value_and_never_anything_else():
    state = {"state_dict": OrderedDict(w=torch.zeros(3, 2)), "global_step": 5, "hyper": {"lr": 1e-4, "name": "x"}}
    memory = io.BytesIO()
    torch.save(state, memory)
    with zipfile.ZipFile(memory) as archive:
        data = archive.read(next(entry for entry in archive.namelist() if entry.endswith("data.pkl")))
    for end in range(len(data)):
        with pytest.raises(WeightsError, match=r"is damaged|asks to run"):  # a name may be cut in the middle
            load_pickle(io.BytesIO(data[:end]), "model.ckpt")
    draw = random.Random(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            load_pickle(io.BytesIO(bytes(damaged)), "model.ckpt")
        except WeightsError:
            refused += 1
    assert refused > 1000
