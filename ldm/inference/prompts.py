"""Prompt files: one prompt a line in `.txt`, one JSON object of request fields a line in `.jsonl`.

Blank lines are skipped, in `.txt` also lines that begin with `#`. Picture number n, counted from 0 over the whole file,
gets the first seed + n unless its line gives a seed; then the pictures of that line count from there. The text is UTF-8
with or without a BOM, or GB18030 (of which GBK is a part), decided for the whole file. It is read as a stream: memory
does not grow with the file. Every error names the file and the line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import logging
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from ldm.errors import RequestError
from ldm.inference.digests import sha256_of
from ldm.inference.spec import (
    SIZE_MULTIPLE,
    GenerationRequest,
    InitImage,
    SamplerConfig,
    SamplerName,
    Spacing,
    check_size,
)

log = logging.getLogger(__name__)

Fields = Dict[str, Any]
Digest = Callable[[Path], str]
# One line, stripped, to its fields; None for one that asks for nothing.
Parser = Callable[[str], Optional[Fields]]

# The fields of a `.jsonl` line, and how an error calls the kind of value that each takes.
TEXT, WHOLE, NUMBER = "a text", "a whole number", "a number"
TYPES: Dict[str, Tuple[type, ...]] = {TEXT: (str,), WHOLE: (int,), NUMBER: (int, float)}
FIELDS = {
    "prompt": TEXT,
    "negative_prompt": TEXT,
    "seed": WHOLE,
    "height": WHOLE,
    "width": WHOLE,
    "steps": WHOLE,
    "sampler": TEXT,
    "schedule": TEXT,
    "guidance_scale": NUMBER,
    "eta": NUMBER,
    "cache_interval": WHOLE,
    "guidance_until": NUMBER,
    "merge_tokens": NUMBER,
    "init": TEXT,
    "strength": NUMBER,
}
SHORTCUT_FIELDS = ("cache_interval", "guidance_until", "merge_tokens")
SAMPLER_FIELDS = ("sampler", "steps", "guidance_scale", "eta", "schedule", *SHORTCUT_FIELDS)
PARTS_KEPT = 1024  # many lines have few samplers, and start from few init images; each of those is read once


def read_prompts(
    path: Path, template: GenerationRequest, images_per_prompt: int = 1, *, size_multiple: int = SIZE_MULTIPLE
) -> Iterator[GenerationRequest]:
    """The pictures that a prompt file asks for, in its order; what a line does not say is taken from `template`.

    Sides must be multiples of `size_multiple` px, which is the model's to say.

    Raises RequestError for a file that is missing, empty, neither UTF-8 nor GBK, or has a line that cannot be made.
    """
    digest = functools.lru_cache(maxsize=PARTS_KEPT)(sha256_of)
    folder = path.parent
    number = 0
    for line, fields in _parsed_lines(path, _parser_for(path)):
        for copy in range(images_per_prompt):
            seed = fields["seed"] + copy if "seed" in fields else template.seed + number
            try:
                request = build_request({**fields, "seed": seed}, template, folder, digest)
                check_size("height", request.height, size_multiple)
                check_size("width", request.width, size_multiple)
            except RequestError as error:
                raise RequestError(f"{path}:{line}: {error}") from error
            yield request
            number += 1
    if number == 0:
        raise _no_prompts(path)


def read_lines(path: Path) -> List[str]:
    """The prompts of a text file of any name, for a command that takes nothing else from it; errors as above."""
    prompts = [fields["prompt"] for _, fields in _parsed_lines(path, _parse_text)]
    if not prompts:
        raise _no_prompts(path)
    return prompts


def count_prompts(path: Path) -> int:
    """About how many lines of a prompt file ask for pictures, without a look at what they ask."""
    comment = b"#" if path.suffix == ".txt" else b"\0"
    try:
        with path.open("rb") as file:
            lines = (line.strip() for line in file)
            return sum(1 for line in lines if line and not line.startswith(comment))
    except OSError as error:
        raise RequestError(f"cannot read the prompts file {path}: {error.strerror}") from error


def build_request(
    fields: Fields, template: GenerationRequest, folder: Path, digest: Digest = sha256_of
) -> GenerationRequest:
    """`template` with the given fields in place of its own; an init image is looked for from `folder`, and digested."""
    asks_init = "init" in fields or "strength" in fields
    return GenerationRequest(
        prompt=fields.get("prompt", template.prompt),
        negative_prompt=fields.get("negative_prompt", template.negative_prompt),
        seed=fields.get("seed", template.seed),
        height=fields.get("height", template.height),
        width=fields.get("width", template.width),
        sampler=_sampler(template.sampler, tuple((name, fields[name]) for name in SAMPLER_FIELDS if name in fields)),
        init=_init_image(fields, folder, digest) if asks_init else template.init,
    )


def find_encoding(path: Path) -> str:
    """The codec that reads the whole file: UTF-8, else GB18030. Raises RequestError naming the first line it cannot."""
    line = _first_undecodable_line(path, "utf-8")
    if line is None:
        return "utf-8-sig"
    if _first_undecodable_line(path, "gb18030") is not None:
        raise RequestError(f"{path}:{line}: the text must be UTF-8 or GBK, this line is neither; save it as UTF-8")
    log.warning("%s is not UTF-8 (line %d), so it is read as GBK", path, line)
    return "gb18030"


def _first_undecodable_line(path: Path, codec: str) -> Optional[int]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode(codec)
                except UnicodeDecodeError:
                    return number
    except OSError as error:
        raise RequestError(f"cannot read the prompts file {path}: {error.strerror}") from error
    return None


def _no_prompts(path: Path) -> RequestError:
    return RequestError(f"{path} must hold at least one prompt, found none; write one a line")


def _parser_for(path: Path) -> Parser:
    parsers: Dict[str, Parser] = {".txt": _parse_text, ".jsonl": _parse_json}
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        raise RequestError(f"a prompts file must end in .txt or .jsonl, got {path}")
    return parse


def _parsed_lines(path: Path, parse: Parser) -> Iterator[Tuple[int, Fields]]:
    with path.open(encoding=find_encoding(path)) as file:
        for number, line in enumerate(file, start=1):
            try:
                fields = parse(line.strip())
            except RequestError as error:
                raise RequestError(f"{path}:{number}: {error}") from error
            if fields is not None:
                yield number, fields


def _parse_text(line: str) -> Optional[Fields]:
    if not line or line.startswith("#"):
        return None
    _check_text("prompt", line)
    return {"prompt": line}


def _parse_json(line: str) -> Optional[Fields]:
    if not line:
        return None
    try:
        fields = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"must be one JSON object, but {error}") from error
    if not isinstance(fields, dict):
        raise RequestError(f'must be one JSON object such as {{"prompt": "a cat"}}, got {line[:40]}')
    checked = {name: _checked(name, value) for name, value in fields.items()}
    if "prompt" not in checked:
        raise RequestError("needs the field 'prompt'")
    return checked


def _without_repeats(pairs: List[Tuple[str, Any]]) -> Fields:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise RequestError(f"the field {next(name for name in fields if names.count(name) > 1)!r} stands there twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)  # json.loads would make one for each line


def _checked(name: str, value: Any) -> Any:
    """The value of a field, a number as a float, so that 7 and 7.0 ask for one and the same picture."""
    kind = FIELDS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(FIELDS)}"
        raise RequestError(f"there is no field {name!r}; {hint}")
    if type(value) not in TYPES[kind]:  # what JSON reads has these very types, and true is no whole number
        raise RequestError(f"{name} must be {kind}, got {json.dumps(value, ensure_ascii=False)}")
    if kind is TEXT:
        _check_text(name, value)
    return _as_float(name, value) if kind is NUMBER else value


def _as_float(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise RequestError(f"{name} must be a number below 1.8e308, got a whole number with more digits") from error


def _check_text(name: str, text: str) -> None:
    """Refuse what no file or picture can carry: NUL, which is how UTF-16 looks, and half a surrogate pair."""
    if "\0" in text:
        raise RequestError(f"{name} holds a NUL character; if the file is UTF-16, save it as UTF-8")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} holds half a character at position {error.start}: {error.reason}") from error


@functools.lru_cache(maxsize=PARTS_KEPT)
def _sampler(base: SamplerConfig, given: Tuple[Tuple[str, Any], ...]) -> SamplerConfig:
    """`base` with the given fields in place of its own."""
    changes = dict(given)
    shortcuts = {name: changes.pop(name) for name in SHORTCUT_FIELDS if name in changes}
    if "sampler" in changes:
        changes["name"] = _member(SamplerName, "sampler", changes.pop("sampler"))
    if "schedule" in changes:
        changes["schedule"] = _member(Spacing, "schedule", changes["schedule"])
    return dataclasses.replace(base, **changes, shortcuts=dataclasses.replace(base.shortcuts, **shortcuts))


def _member(kind: Any, name: str, value: str) -> Any:
    known = [member.value for member in kind]
    if value not in known:
        raise RequestError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return kind(value)


def _init_image(fields: Fields, folder: Path, digest: Digest) -> InitImage:
    if "init" not in fields:
        raise RequestError("strength needs the field 'init', the picture to start from")
    path = (folder / fields["init"]).absolute()
    strength = {"strength": fields["strength"]} if "strength" in fields else {}
    try:
        return InitImage(path=str(path), sha256=digest(path), **strength)
    except OSError as error:
        raise RequestError(f"cannot read the init image {path}: {error.strerror}") from error
