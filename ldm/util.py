"""Build the objects that a YAML names: `target` is an import path, `params` its keyword arguments.

The schema is CompVis's, so that any v1-style file resolves. A YAML may come from a stranger together with a checkpoint:
only classes are built, and only networks (`torch.nn.Module`) or classes of `ldm` itself.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any, Dict, Mapping

from ldm.errors import ConfigError

PLACEHOLDERS = ("__is_first_stage__", "__is_unconditional__")
NODE_KEYS = ("target", "params", "base_learning_rate")


def instantiate_from_config(config: Any) -> Any:
    """The object a config node `{target, params}` describes; None for the two placeholder strings of the schema."""
    if config in PLACEHOLDERS:
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        raise ConfigError(f"a config node must have the key 'target', got {config!r}")
    target = str(config["target"])
    for key in config:
        if key not in NODE_KEYS:
            raise ConfigError(f"the config node of {target} must have only {', '.join(NODE_KEYS)}, got {key!r}")
    cls = get_obj_from_str(target)
    params = without_fixed(target, cls, config.get("params") or {})
    refuse_unknown_params(target, cls, params)
    try:
        return cls(**params)
    except (TypeError, ValueError, ArithmeticError, LookupError, AssertionError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):  # as torch tells of a lack of it
            raise
        raise ConfigError(f"{target} cannot be built from these params: {' '.join(str(error).split())}") from error


def without_fixed(target: str, cls: type, params: Mapping[str, Any]) -> Dict[str, Any]:
    """The params without those of the schema that may stand there but have one value here: `FIXED` of the class."""
    fixed = getattr(cls, "FIXED", {})
    for key in params:
        if key in fixed and params[key] != fixed[key]:
            raise ConfigError(f"{target} is built with {key}: {fixed[key]} only, got {params[key]!r}")
    return {key: value for key, value in params.items() if key not in fixed}


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """The class at an import path such as `ldm.models.autoencoder.AutoencoderKL`."""
    module_name, _, name = string.rpartition(".")
    try:
        module = importlib.import_module(module_name)
        if reload:
            module = importlib.reload(module)
        cls = getattr(module, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"target must be the import path of a class, got {string!r}: {error}") from error
    if not _may_be_built(cls):
        raise ConfigError(f"target must be a torch.nn.Module or a class of ldm, got {string!r}")
    return cls


def refuse_unknown_params(target: str, cls: type, params: Mapping[str, Any]) -> None:
    """Raise on the first key that the constructor does not take, naming the nearest that it does."""
    accepted = inspect.signature(cls).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values()):
        return
    for key in params:
        if key not in accepted:
            near = difflib.get_close_matches(str(key), accepted, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(accepted)}"
            raise ConfigError(f"{target} has no parameter {key!r}; {hint}")
    missing = [
        name
        for name, p in accepted.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in params
    ]
    if missing:
        raise ConfigError(f"{target} needs the parameter {missing[0]!r}; add it under 'params:'")


def _may_be_built(cls: Any) -> bool:
    # By name, so that resolving a target does not import torch by itself.
    if not isinstance(cls, type):
        return False
    return cls.__module__.split(".")[0] == "ldm" or any(
        f"{base.__module__}.{base.__qualname__}" == "torch.nn.modules.module.Module" for base in cls.__mro__
    )
