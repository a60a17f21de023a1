"""The rules of the code base as functions from a file's text to the places where it breaks them.

Each returns one line a place, "line: what is wrong", so that a test can show them all at once. test_architecture.py
runs them over the tree, and over snippets that break them.
"""

from __future__ import annotations

import ast
import re
from typing import Dict, FrozenSet, Iterator, List, Mapping, Optional, Set, Tuple, Union

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6

# Layer: the layers that it may import, itself left out. A module belongs to the longest name that it starts with.
FLOOR = frozenset({"ldm.errors", "ldm.inference.spec"})
MODULES = FLOOR | {"ldm.util"}
MODELS = MODULES | {"ldm.modules"}
INFERENCE = MODELS | {"ldm.models", "ldm.lr_scheduler"}
# The packages of jobs, from the ground up: each may import those before it. What stands in none of them is the ground.
JOBS = (
    *("jobs", "jobs.storage", "jobs.cluster", "jobs.worker", "jobs.submit", "jobs.proof", "jobs.state", "jobs.pages"),
    *("jobs.doctor", "jobs.commands", "jobs.cli", "jobs.__main__"),
)
LAYERS: Dict[str, FrozenSet[str]] = {
    "ldm.errors": frozenset(),
    "ldm.inference.spec": frozenset({"ldm.errors"}),
    "ldm.util": FLOOR,
    "ldm.lr_scheduler": MODULES,
    "ldm.modules": MODULES,
    "ldm.models": MODELS,
    "ldm.training": INFERENCE,
    "ldm.inference": INFERENCE,
    **{layer: INFERENCE | {"ldm.inference", *JOBS[:floor]} for floor, layer in enumerate(JOBS)},
    "scripts": INFERENCE | {"ldm.inference", "ldm.training", *JOBS},
}

# What Python 3.8 lacks, that parsing alone does not show.
NEWER_ATTRIBUTES = frozenset(
    {"removeprefix", "removesuffix", "is_relative_to", "readlink", "hardlink_to", "bit_count", "randbytes", "lcm"}
    | {"BooleanOptionalAction", "pairwise", "batched", "StrEnum", "file_digest"}
)
NEWER_IMPORTS = frozenset(
    {
        ("functools", "cache"),
        ("contextlib", "chdir"),
        ("datetime", "UTC"),
        ("enum", "StrEnum"),
        ("itertools", "pairwise"),
    }
    | {("typing", name) for name in ("Annotated", "Concatenate", "ParamSpec", "Self", "TypeAlias", "TypeGuard")}
    | {(name, None) for name in ("graphlib", "tomllib", "zoneinfo")}
)
NEWER_KEYWORDS = frozenset({("zip", "strict"), ("dataclass", "kw_only"), ("dataclass", "slots")})
BUILTIN_GENERICS = frozenset({"dict", "frozenset", "list", "set", "tuple", "type"})


def layer_of(module: str) -> Optional[str]:
    """The layer of a dotted module name; None for one that has none."""
    fitting = [layer for layer in LAYERS if module == layer or module.startswith(f"{layer}.")]
    return max(fitting, key=len, default=None)


def imported(tree: ast.AST) -> Iterator[Tuple[int, str]]:
    """Line and dotted name of every import, inside functions too; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


def upward_imports(text: str, module: str) -> List[str]:
    """Imports that the dependency rule forbids `module`."""
    own = layer_of(module)
    if own is None:
        return [f"1: {module} has no layer: add it to LAYERS"]
    found = []
    for line, name in imported(ast.parse(text)):
        other = layer_of(name)
        if name.startswith("."):
            found.append(f"{line}: {name} is relative")
        elif other not in (None, own) and other not in LAYERS[own]:
            found.append(f"{line}: {module} must not import {name}")
    return found


def star_imports(text: str) -> List[str]:
    """`from x import *`."""
    return [f"{line}: {name}" for line, name in imported(ast.parse(text)) if name.endswith(".*")]


def prints(text: str) -> List[str]:
    """Calls of print."""
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return [f"{call.lineno}: print" for call in calls if _name(call.func) == "print"]


def word_cuda(text: str) -> List[str]:
    """The word cuda as code has it. CUDA_VISIBLE_DEVICES and the proper name CUDA are something else."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{number}: {line.strip()}" for number, line in lines if re.search(r"\bcuda\b", line)]


def missing_docstring(text: str) -> List[str]:
    """A module that says nothing about itself, unless it is empty."""
    tree = ast.parse(text)
    return [] if not tree.body or ast.get_docstring(tree) else ["1: no module docstring"]


def long_file(text: str) -> List[str]:
    """More lines than MAX_FILE_LINES."""
    lines = text.count("\n")
    return [f"1: {lines} lines, at most {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []


def long_functions(text: str) -> List[str]:
    """Functions of more lines than MAX_FUNCTION_LINES, docstring included."""
    return [
        f"{node.lineno}: {name} has {length} lines, at most {MAX_FUNCTION_LINES}"
        for name, node in _functions(ast.parse(text))
        for length in [(node.end_lineno or 0) - node.lineno + 1]
        if length > MAX_FUNCTION_LINES
    ]


def wide_functions(text: str) -> Dict[str, int]:
    """Qualified name and count of parameters, self left out, of functions that take more than MAX_PARAMETERS."""
    counts = {name: _parameters(node) for name, node in _functions(ast.parse(text))}
    return {name: count for name, count in counts.items() if count > MAX_PARAMETERS}


def unlisted(found: Mapping[str, int], listed: Set[str]) -> List[str]:
    """Wide functions that are not listed, and listed ones that are not wide any more."""
    wide = [f"{name} takes {found[name]} parameters, at most {MAX_PARAMETERS}" for name in sorted(set(found) - listed)]
    return wide + [f"{name} is listed, but is not that wide: take it off" for name in sorted(listed - set(found))]


def newer_than_38(text: str) -> List[str]:
    """What Python 3.8 would refuse: syntax, names, keywords, and annotations evaluated where 3.8 cannot."""
    try:
        tree = ast.parse(text, feature_version=(3, 8))
    except SyntaxError as error:
        return [f"{error.lineno}: {error.msg}"]
    found = [*_newer_names(tree), *_runtime_generics(tree)]
    typed = any(isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AnnAssign)) for node in ast.walk(tree))
    if typed and "__future__.annotations" not in {name for _, name in imported(tree)}:
        found.append("1: no `from __future__ import annotations`")
    return found


def _newer_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in NEWER_ATTRIBUTES or (_name(node.value), node.attr) in NEWER_IMPORTS:
                yield f"{node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Call):
            given = {(_name(node.func), word.arg) for word in node.keywords}
            yield from (f"{node.lineno}: {name}({word}=)" for name, word in sorted(given & NEWER_KEYWORDS))
    for line, name in imported(tree):
        module, _, member = name.rpartition(".")
        if {(module, member), (name, None), (module, None)} & NEWER_IMPORTS:
            yield f"{line}: {name}"


def _runtime_generics(tree: ast.AST) -> Iterator[str]:
    """`list[int]` and the like outside annotations, as in an alias or a base class."""
    parts = [getattr(node, field, None) for node in ast.walk(tree) for field in ("annotation", "returns")]
    annotations = {id(child) for part in parts if part is not None for child in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and id(node) not in annotations and _name(node.value) in BUILTIN_GENERICS:
            yield f"{node.lineno}: {_name(node.value)}[...] is evaluated at run time"


def _name(node: ast.AST) -> str:
    """`list` of both `list` and `builtins.list`."""
    return getattr(node, "id", getattr(node, "attr", ""))


def _functions(node: ast.AST, prefix: str = "") -> Iterator[Tuple[str, Function]]:
    """Every function under a node with its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{child.name}", child
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


def _parameters(function: Function) -> int:
    arguments = function.args
    names = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    return len(names) - (names[:1] in (["self"], ["cls"]))
