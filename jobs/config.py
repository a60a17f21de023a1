"""From YAML files and key=value words to checked settings, and back to YAML: the one module that knows both.

A key=value word sets a key of `JobSpec`; `cluster.KEY=value` one of the cluster's profile; `job=FILE` reads a job file
first, wherever it stands. Later words win. Text is taken to the letter: a shell's `${HOME}` is not OmegaConf's.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union

from jobs.spec import HOW, ClusterProfile, JobSpec
from ldm.errors import ConfigError
from ldm.inference.models import PROJECT_ROOT

T = TypeVar("T", JobSpec, ClusterProfile)
Value = Tuple[str, Any, str]  # key, value, and the file where it was written, if any

CLUSTERS = Path("configs") / "clusters"
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list", dict: "a map"}


@dataclass(frozen=True)
class Settings:
    """A job and the cluster that it runs on."""

    spec: JobSpec
    profile: ClusterProfile


def read_settings(words: Sequence[str], base: Optional[Settings] = None) -> Settings:
    """The settings that key=value words ask for, over `base`, those of a run: then what its plan fixed stays fixed."""
    pairs = [_split_word(word) for word in words]
    job_files = [value for key, value in pairs if key == "job"]
    job_values = [item for path in job_files for item in _file_values(Path(path))]
    job_values += [(key, _parse(JobSpec, key, text), "") for key, text in pairs if _is_job_key(key)]
    if base is not None:
        _refuse_planned(key for key, _, _ in job_values)
    spec = build(JobSpec, job_values, base.spec if base else None)
    changes_cluster = base is None or any(key == "cluster" for key, _, _ in job_values)
    profile = load_profile(spec.cluster) if changes_cluster else base.profile  # type: ignore[union-attr]
    cluster_pairs = [(key.split(".", 1)[1], text) for key, text in pairs if key.startswith("cluster.")]
    return Settings(spec, build(ClusterProfile, _profile_values(cluster_pairs, profile), profile))


def load_profile(name: str) -> ClusterProfile:
    """The profile of a cluster by its name in configs/clusters, or by the path of its YAML file."""
    return build(ClusterProfile, _file_values(profile_path(name)))


def profile_path(name: str) -> Path:
    """The file of a profile: by its name in configs/clusters, here or in the project, or by its own path."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = profile_paths()
    if name not in known and Path(f"{name}.yaml").exists():
        raise ConfigError(f"there is no cluster {name!r} in {CLUSTERS}; did you mean {name}.yaml?")
    refuse_unknown(name, sorted(known), "cluster")
    return known[name]


def profile_paths() -> Dict[str, Path]:
    """The profiles in configs/clusters by name; one of the working folder wins over the project's."""
    folders = [folder for folder in (Path.cwd() / CLUSTERS, PROJECT_ROOT / CLUSTERS) if folder.is_dir()]
    return {path.stem: path for folder in reversed(folders) for path in folder.glob("*.yaml")}


def build(kind: Type[T], values: Iterable[Value], base: Optional[T] = None) -> T:
    """`kind` with its defaults, or those of `base`, under the given values; the last value of a key wins.

    Raises ConfigError for a key that `kind` does not have, with the nearest that it has, and for a value of another
    type.
    """
    given: Dict[str, Any] = {}
    known = _fields(kind)
    for key, value, where in values:
        if kind is JobSpec and key not in known and key in _fields(ClusterProfile):
            raise ConfigError(f"{key!r} belongs to the cluster's profile; did you mean cluster.{key}?")
        refuse_unknown(key, known, "key")
        value = _without_words_of_yaml(kind, key, value, where)
        given[key] = value if _fits(kind, key, value) else _converted(kind, key, value, where)
    return kind(**{**(vars(base) if base else {}), **given})


def _fits(kind: type, key: str, value: Any) -> bool:
    """Whether a value has its field's type as it is: most have, and OmegaConf costs a tenth of a second to import."""
    hint, optional = _hint(kind, key)
    if value is None:
        return optional
    entries = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return type(value) is hint and all(type(entry) is str for entry in entries)


def _converted(kind: type, key: str, value: Any, where: str) -> Any:
    """A value as OmegaConf turns it into its field's type."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.structured(kind)
    OmegaConf.set_readonly(tree, False)
    try:
        _refuse_missing(kind, key, value)
        OmegaConf.update(tree, key, _literal(value), merge=False)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{key} must be {_kind_name(kind, key)}, got {value!r}{where and f' ({where})'}") from error
    # Not to_object: a text of three question marks is a text here, and would be a value that is missing there.
    return typing.cast(Dict[str, Any], OmegaConf.to_container(tree, resolve=True))[key]


def _without_words_of_yaml(kind: type, key: str, value: Any, where: str) -> Any:
    """The value; ConfigError where YAML's `false`, `yes` or nothing stands for a text, where it would become Python's
    word for it. `safety: off` alone can mean one thing only.
    """
    if key == "safety" and value is False:
        return "off"
    hint, optional = _hint(kind, key)
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    place = f" in {where}" if where else ""
    if hint is str and (isinstance(value, bool) or (value is None and not optional)):
        raise ConfigError(f"{key} must be a text, YAML reads it as {value}; quote it{place}")
    for entry in entries:
        if entry is None or isinstance(entry, bool):
            raise ConfigError(f"{key} must hold text, YAML reads one entry as {entry}; quote it{place}")
    return value


def _refuse_missing(kind: type, key: str, value: Any) -> None:
    """Raise ValueError for OmegaConf's mark of a missing value, which it takes for any kind, unless it is a text."""
    if isinstance(value, str) and value == "???" and _hint(kind, key)[0] is not str:
        raise ValueError(value)


def refuse_unknown(key: str, known: Iterable[str], what: str) -> None:
    """Raise ConfigError, with near misses, unless `key` is known."""
    known = list(known)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"there is no {what} {key!r}; {hint}")


def read_yaml(path: Path) -> Dict[str, Any]:
    """The map that a YAML file holds; a key that stands there twice is an error."""
    import yaml

    # Where libyaml is there, it reads ten times as fast.
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = {key for key in keys if keys.count(key) > 1}
            if twice:
                raise ConfigError(f"{path} holds the key {min(twice)!r} twice")
            return dict(super().construct_mapping(node, deep))

    try:
        with path.open(encoding="utf-8-sig") as file:
            values = yaml.load(file, Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be YAML in UTF-8: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must hold `key: value` lines, got {type(values).__name__}")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text in the order of the map; dataclasses inside become maps."""
    import yaml

    plain = {key: dataclasses.asdict(value) if _is_dataclass(value) else value for key, value in values.items()}
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _split_word(word: str) -> Tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"settings are given as key=value, got {word!r}")
    return key, value


def _is_job_key(key: str) -> bool:
    return key != "job" and not key.startswith("cluster.")


def _file_values(path: Path) -> List[Value]:
    return [(key, value, str(path)) for key, value in read_yaml(path).items()]


def _refuse_planned(keys: Iterable[str]) -> None:
    fixed = [key for key in keys if key in _fields(JobSpec) and key not in HOW]
    if fixed:
        raise ConfigError(f"{fixed[0]} is fixed by the plan of the run; of a run one may change {', '.join(HOW)}")


def _profile_values(pairs: List[Tuple[str, str]], profile: ClusterProfile) -> List[Value]:
    """The values of `cluster.KEY=value` words, where KEY may name one entry of a map, such as env.HOME."""
    values: List[Value] = []
    maps: Dict[str, Dict[str, str]] = {"env": dict(profile.env), "directives": dict(profile.directives)}
    for key, text in pairs:
        head, dot, entry = key.partition(".")
        if dot and head in maps:
            maps[head][entry] = text
            values.append((head, dict(maps[head]), ""))
        else:
            values.append((key, _parse(ClusterProfile, key, text), ""))
    return values


def _parse(kind: type, key: str, text: str) -> Any:
    """A word's value: text to the letter, a list or a map as YAML, a plain number, the rest as OmegaConf reads it;
    null is None.
    """
    import yaml

    hint, optional = _hint(kind, key)
    if optional and text == "null":
        return None
    if hint in (int, float) and re.fullmatch(r"-?\d{1,15}" if hint is int else r"-?\d{1,15}(\.\d{1,15})?", text):
        return hint(text)
    if hint not in (list, dict):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key} must be {KINDS[hint]} in YAML, got {text!r}") from error


def _hint(kind: type, key: str) -> Tuple[Any, bool]:
    """The plain type of a field, str where there is no such field, and whether it may be None."""
    hint = _hints(kind).get(key, str)
    if typing.get_origin(hint) is Union:
        return typing.get_args(hint)[0], True
    return typing.get_origin(hint) or hint, False


@functools.lru_cache(maxsize=None)  # they are slow to work out, and are asked for with every key of a run.yaml
def _hints(kind: type) -> Dict[str, Any]:
    return typing.get_type_hints(kind)


def _kind_name(kind: type, key: str) -> str:
    hint, optional = _hint(kind, key)
    return KINDS[hint] + (" or null" if optional else "")


def _fields(kind: type) -> List[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _literal(value: Any) -> Any:
    """The value with OmegaConf's interpolation marks taken out of force."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda mark: mark.group(1) * 2 + r"\${", value)
    if isinstance(value, (list, tuple)):
        return [_literal(item) for item in value]
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return value
