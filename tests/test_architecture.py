"""The rules of the code base hold all over the tree, and the rules themselves find what breaks them."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable, List, Tuple

import pytest

from tests import code_rules as rules

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("ldm/", "jobs/", "scripts/", "benchmarks/")
PRINTERS = ("scripts/", "benchmarks/", "tests/", "jobs/cli.py", "jobs/commands/", "jobs/__main__.py")
CUDA_SPEAKER = "ldm/inference/runtime.py"
LIGHT = ("ldm.errors", "ldm.util", "ldm.inference.spec", "ldm.inference.prompts", "jobs")
HEAVY = ("torch", "numpy", "PIL", "transformers", "pytorch_lightning")
MAX_MODEL_BYTES = 30_000_000
MAX_OTHER_BYTES = 2_000_000

# Signatures that a config's keys or a caller's keywords fix; nothing else takes more than six parameters.
FACADES = {
    "ldm/models/autoencoder.py:AutoencoderKL.__init__",
    "ldm/models/diffusion/ddpm.py:LatentDiffusion.__init__",
    "ldm/models/diffusion/sampler.py:Sampler.sample",
    "ldm/modules/attention.py:SpatialTransformer.__init__",
    "ldm/modules/diffusionmodules/openaimodel.py:ResBlock.__init__",
    "ldm/modules/diffusionmodules/openaimodel.py:UNetModel.__init__",
}

Rule = Callable[[str], List[str]]


@functools.lru_cache(maxsize=None)
def tracked() -> Tuple[str, ...]:
    """The files under version control that are still there, relative to the root."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    return tuple(name for name in names if name and (ROOT / name).is_file())


def python_files(*prefixes: str) -> List[str]:
    """The tracked Python files below the prefixes."""
    return [name for name in tracked() if name.endswith(".py") and name.startswith(prefixes)]


def text_files() -> List[str]:
    """The tracked files that are written by hand."""
    kinds = (".cfg", ".j2", ".md", ".py", ".sbatch", ".sh", ".toml", ".txt", ".yaml", ".yml", "Makefile", "run")
    return [name for name in tracked() if name.endswith(kinds) and not name.startswith("models/")]


def read(name: str) -> str:
    """The text of a tracked file."""
    return (ROOT / name).read_text(encoding="utf-8")


def breaches(rule: Rule, names: List[str]) -> List[str]:
    """Where `rule` is broken, as file:line: what."""
    assert names, "there is nothing to look at"
    return [f"{name}:{place}" for name in names for place in rule(read(name))]


def module_name(file: str) -> str:
    """ldm/inference/__init__.py -> ldm.inference."""
    return re.sub(r"(/__init__)?\.py$", "", file).replace("/", ".")


def test_imports_only_go_down() -> None:
    files = [name for name in python_files("ldm/", "jobs/", "scripts/") if name != "ldm/__init__.py"]
    found = [f"{name}:{place}" for name in files for place in rules.upward_imports(read(name), module_name(name))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "prefixes"),
    [
        (rules.star_imports, ("",)),
        (rules.newer_than_38, ("",)),
        (rules.missing_docstring, ("",)),
        (rules.long_functions, ("",)),
        (rules.long_file, (*LIBRARY, "tools/")),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_no_file_breaks(rule: Rule, prefixes: Tuple[str, ...]) -> None:
    found = breaches(rule, python_files(*prefixes))
    assert not found, "\n".join(found)


def test_only_commands_print() -> None:
    found = breaches(rules.prints, [name for name in python_files("") if not name.startswith(PRINTERS)])
    assert not found, "\n".join(found)


def test_one_module_knows_the_device() -> None:
    assert rules.word_cuda(read(CUDA_SPEAKER)), "the one file that may say the word has moved: name it here"
    found = breaches(rules.word_cuda, [name for name in python_files(*LIBRARY) if name != CUDA_SPEAKER])
    assert not found, "\n".join(found)


def test_only_the_facades_take_many_parameters() -> None:
    found = {
        f"{name}:{function}": count
        for name in python_files(*LIBRARY, "tools/")
        for function, count in rules.wide_functions(read(name)).items()
    }
    problems = rules.unlisted(found, FACADES)
    assert not problems, "\n".join(problems)


def light_modules() -> List[str]:
    """Modules that a login node imports: no torch there, and every import read from a slow disk."""
    modules = [module_name(name) for name in python_files("ldm/", "jobs/")]
    return [name for name in modules if name.startswith(LIGHT) and not name.endswith("__main__")]


def heavy_imports(modules: List[str], folder: Path) -> str:
    """The first of `modules` that brings in one of HEAVY, found in a fresh interpreter at `folder`."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [module for module in {HEAVY!r} if module in sys.modules]\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True, check=False)
    return done.stderr.strip()


def test_the_control_plane_does_without_torch() -> None:
    assert heavy_imports(light_modules(), ROOT) == ""


def test_a_heavy_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "light.py").write_text("import json\n")
    (tmp_path / "heavy.py").write_text("import numpy\n")
    assert heavy_imports(["light"], tmp_path) == ""
    assert heavy_imports(["light", "heavy"], tmp_path) == "heavy imports ['numpy']"


def test_the_tree_names_no_place_on_a_developers_machine() -> None:
    found = breaches(machine_paths, text_files())
    assert not found, "\n".join(found)


def test_text_files_end_cleanly() -> None:
    found = breaches(loose_ends, text_files())
    assert not found, "\n".join(found)


def test_tracked_files_are_small() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in tracked()}
    limits = {name: MAX_MODEL_BYTES if name.startswith("models/") else MAX_OTHER_BYTES for name in sizes}
    assert {name: size for name, size in sizes.items() if size > limits[name]} == {}


def machine_paths(text: str) -> List[str]:
    """Absolute paths in folders that only one machine has; a platform's /opt/dtk is none."""
    pattern = re.compile(r"(?<![\w.$}])/(?:root|work|opt(?!/dtk))/")
    return [f"{number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def loose_ends(text: str) -> List[str]:
    """Blanks at the end of a line, carriage returns, and a last line that is not one."""
    found = [f"{number}: {line!r}" for number, line in enumerate(text.split("\n"), 1) if line != line.rstrip()]
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        found.append("1: must end with one newline")
    return found


LONG = "def long():\n" + "    x = 1\n" * 60
WIDE = "class A:\n    def f(self, a, b, c, *, d, e, f, g): ...\n"
FUTURE = "from __future__ import annotations\n"


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (rules.star_imports, "from os import *", "from os import path"),
        (rules.prints, "def f():\n    print(1)", "log.info('print(1)')"),
        (rules.word_cuda, "x.to('cuda')", "os.environ['CUDA_VISIBLE_DEVICES']"),
        (rules.missing_docstring, "x = 1", ""),
        (rules.long_file, "\n" * 401, "\n" * 400),
        (rules.long_functions, LONG, LONG.replace("    x = 1\n", "", 1)),
        (rules.newer_than_38, FUTURE + "match x:\n    case 1: pass", FUTURE + "match = 1"),
        (rules.newer_than_38, FUTURE + "with (open(a) as b, open(c) as d): pass", FUTURE + "with open(a) as b: pass"),
        (rules.newer_than_38, FUTURE + "x = a.removeprefix('b')", FUTURE + "x = a.replace('b', '')"),
        (rules.newer_than_38, FUTURE + "from functools import cache", FUTURE + "from functools import lru_cache"),
        (rules.newer_than_38, FUTURE + "import functools\n@functools.cache\ndef f(): ...", FUTURE + "x = store.cache"),
        (rules.newer_than_38, FUTURE + "import tomllib", FUTURE + "import json"),
        (rules.newer_than_38, FUTURE + "zip(a, b, strict=True)", FUTURE + "check(a, b, strict=True)"),
        (rules.newer_than_38, FUTURE + "Rows = list[int]", FUTURE + "rows: list[int] = []"),
        (
            rules.newer_than_38,
            FUTURE + "class A(dict[str, int]): ...",
            FUTURE + "def f(x: dict[str, int]) -> list[int]: ...",
        ),
        (rules.newer_than_38, "def f(): ...", FUTURE + "def f(): ..."),
        *((machine_paths, f"cd /{top}/x", f"cd $HERE/{top}/x; cd ./{top}/x") for top in ("root", "work", "opt")),
        (loose_ends, "a \n", "a\n"),
        (loose_ends, "a", "a\n"),
        (loose_ends, "a\n\n", ""),
    ],
)
def test_a_rule_finds_what_breaks_it(rule: Rule, bad: str, good: str) -> None:
    assert rule(bad) != []
    assert rule(good) == []


@pytest.mark.parametrize(
    ("module", "line", "forbidden"),
    [
        ("ldm.modules.attention", "from ldm.models.autoencoder import AutoencoderKL", True),
        ("ldm.modules.attention", "from ldm.inference import runtime", True),
        ("ldm.util", "from ldm.inference.spec import GenerationRequest", False),
        ("ldm.inference.spec", "from ldm.inference.prompts import read_prompts", True),
        ("ldm.inference.pipeline", "def f():\n    import ldm.training.emoji", True),
        ("ldm.inference.pipeline", "import jobs.plan", True),
        ("jobs.worker.worker", "def f():\n    from ldm.inference.pipeline import Pipeline", False),
        ("jobs.worker.worker", "from .plan import make_plan", True),
        ("jobs.worker.worker", "import scripts.txt2img", True),
        ("jobs.worker.worker", "from jobs.storage.pictures import store", False),
        ("jobs.storage.pictures", "from jobs.worker.worker import Worker", True),
        ("jobs.plan", "def f():\n    from jobs.cli import main", True),
        ("scripts.train", "from ldm.training.emoji import draw", False),
        ("ldm.novelty", "import os", True),
    ],
)
def test_the_dependency_rule_tells_up_from_down(module: str, line: str, forbidden: bool) -> None:
    assert bool(rules.upward_imports(line, module)) is forbidden


def test_wide_functions_are_counted_without_self_and_must_be_listed() -> None:
    assert rules.wide_functions(WIDE) == {"A.f": 7}
    assert rules.wide_functions(WIDE.replace("a, ", "")) == {}
    assert rules.unlisted({"A.f": 7}, {"A.f"}) == []
    assert rules.unlisted({"A.f": 7}, set()) == ["A.f takes 7 parameters, at most 6"]
    assert rules.unlisted({}, {"A.f"}) == ["A.f is listed, but is not that wide: take it off"]
