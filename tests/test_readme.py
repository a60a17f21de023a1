"""What the documentation tells people to type exists, and its links lead somewhere."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List, Sequence, Set

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md"))
SHELL_BLOCK = re.compile(r"^ *```(?:bash|console|sh|shell)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
OURS = ("benchmarks/", "configs/", "examples/", "models/emoji-v1/", "requirements/", "scripts/", "tests/", "tools/")


def commands(page: str) -> Iterator[List[str]]:
    """The simple commands of a page's shell blocks, as words: no prompts, comments, output or assignments."""
    for block in SHELL_BLOCK.findall(page):
        lines = block.replace("\\\n", " ").splitlines()
        if any(line.lstrip().startswith("$ ") for line in lines):
            lines = [line.lstrip()[2:] for line in lines if line.lstrip().startswith("$ ")]
        for line in lines:
            yield from _simple_commands(line)


def _simple_commands(line: str) -> Iterator[List[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.wordchars += "[]{}@%+,:!^"
    words: List[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"[A-Z_]+=", word):
            words.append(word)


def problems(words: Sequence[str]) -> List[str]:
    """What of a command does not exist here."""
    found = [f"no file {word}" for word in words if word.startswith(OURS) and not (ROOT / word).exists()]
    if words[0] == "make":
        wanted = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        found += [f"no make target {word}" for word in wanted if word not in make_targets()]
    elif "install" in words:
        extras = re.findall(r"\.\[([\w,]+)\]", " ".join(words))
        found += [f"no extra {name}" for names in extras for name in names.split(",") if name not in extras_declared()]
    else:
        python = next((at for at, word in enumerate(words) if re.fullmatch(r"python[\d.]*", word)), None)
        if python is not None and not found:
            found += python_problems(words[python + 1 :])
    return found


def python_problems(words: Sequence[str]) -> List[str]:
    """What of the words after `python` does not exist: a subcommand, an option, a cluster or a model."""
    if words[:2] == ["-m", "jobs"] and len(words) > 2 and not words[2].startswith("-"):
        if not re.search(rf"\b{re.escape(words[2])}\b", help_text("-m", "jobs")):
            return [f"no subcommand {words[2]}"]
        shown = help_text("-m", "jobs", words[2])
        named = [word.split("=", 1) for word in words[3:] if re.match(r"(cluster|model)=(?!.*\.yaml|rehearsal$)", word)]
        folders = {"cluster": ROOT / "configs" / "clusters", "model": ROOT / "models"}
        missing = [f"no {key} {name}" for key, name in named if not list(folders[key].glob(f"{name}*"))]
        return missing + options_missing(words[3:], shown)
    if words and words[0].startswith(OURS):
        return options_missing(words[1:], help_text(words[0]))
    return []


def options_missing(words: Sequence[str], shown: str) -> List[str]:
    """The options among `words` that a help text does not show."""
    options = [word.split("=", 1)[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    return [f"no option {option}" for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", shown)]


@functools.lru_cache(maxsize=None)
def help_text(*words: str) -> str:
    """What a command of ours answers to --help."""
    command = [sys.executable, *words, "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def make_targets() -> Set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def extras_declared() -> Set[str]:
    """The optional dependencies of pyproject.toml, which Python 3.8 has no module to read with."""
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = ", section, re.MULTILINE))


def broken_links(page: str, folder: Path) -> List[str]:
    """Relative links without a file and anchors without a heading; addresses on the network are not tried."""
    prose = ANY_BLOCK.sub("", page)
    targets = [first or second for first, second in LINK.findall(prose)]
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    return [target for target in local if not _leads_somewhere(target, prose, folder)]


def _leads_somewhere(target: str, prose: str, folder: Path) -> bool:
    path, _, anchor = target.partition("#")
    if path:
        return (folder / path).exists()
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_command_on_the_page_exists(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    found = [f"{' '.join(words)}: {problem}" for words in commands(page) for problem in problems(words)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_on_the_page_leads_somewhere(name: str) -> None:
    assert broken_links((ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent) == []


def test_the_readme_shows_the_two_commands() -> None:
    shown = list(commands((ROOT / "README.md").read_text(encoding="utf-8")))
    assert ["make", "run"] in shown
    assert ["make", "test"] in shown


def test_commands_are_found_in_shell_blocks_only() -> None:
    page = (
        "```bash\ncd x && make run  # comment\nPROMPTS=a make test\n```\n"
        "```bash\npython3 scripts/a.py --prompt \"a 'b' c\" \\\n  --plms\n```\n"
        "```text\nmake nonsense\n```\n"
        "```console\n$ make lint | tail\nmake: output\n```\n"
    )
    assert list(commands(page)) == [
        ["cd", "x"],
        ["make", "run"],
        ["make", "test"],
        ["python3", "scripts/a.py", "--prompt", "a 'b' c", "--plms"],
        ["make", "lint"],
        ["tail"],
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("make test TORCH=torch==2.13.0", None),
        ("make coffee", "no make target coffee"),
        ("pip install -e .[train,eval]", None),
        ("pip install -e .[tea]", "no extra tea"),
        ("pip install --no-deps -r requirements/dtk2210.txt", None),
        ("pip install -r requirements/none.txt", "no file requirements/none.txt"),
        ("python -m jobs submit prompts.txt cluster=local", None),
        ("srun python -m jobs work outputs/cats", None),
        ("python -m jobs juggle", "no subcommand juggle"),
        ("python -m jobs submit prompts.txt cluster=moon", "no cluster moon"),
        ("python -m jobs submit prompts.txt --frobnicate", "no option --frobnicate"),
        ("python3 scripts/txt2img.py --prompt 'a cat' --plms --outdir=outputs", None),
        ("python3 scripts/txt2img.py --prompts x", "no option --prompts"),
        ("python3 scripts/none.py", "no file scripts/none.py"),
        ("sbatch run.sbatch", None),
    ],
)
def test_what_does_not_exist_is_named(line: str, problem: str) -> None:
    (words,) = commands(f"```bash\n{line}\n```\n")
    assert problems(words) == ([] if problem is None else [problem])


def test_broken_links_are_named(tmp_path: Path) -> None:
    (tmp_path / "here.md").write_text("")
    page = "# A title, here\n[a](here.md) [b](gone.md) [c](https://x.org) [d](#a-title-here) [e](#gone) ![f](g.png)\n"
    assert broken_links(page, tmp_path) == ["gone.md", "#gone", "g.png"]
    assert broken_links("```text\n[a](gone.md)\n```\n", tmp_path) == []
