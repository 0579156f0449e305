"""Merge of config files and of a command line's keys and values into a config, with errors in the user's terms."""

import ast
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as CN

from proposal_cache.errors import reason
from samcp.errors import UsageError
from samcp.yaml_files import read_yaml

_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
_MAX_SUGGESTIONS = 3


def merge_file(cfg: CN, path: str) -> None:
    """Merge a yaml file and its _BASE_ into a config.

    Raises:
        UsageError: the file cannot be read, or has an unknown key or a value of the wrong type.
    """
    try:
        _check_file(Path(path), cfg)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    except (OSError, AssertionError) as error:
        raise UsageError(f"{path}: cannot be read as a config ({reason(error)})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: {_explain(cfg, str(error.args[0]))}") from error


def merge_overrides(cfg: CN, opts: Sequence[str]) -> None:
    """Merge the keys and values of a command line, such as ["SOLVER.MAX_ITER", "100"], into a config.

    Raises:
        UsageError: a key is unknown or has no value, or a value has the wrong type.
    """
    for option in opts[::2]:
        if option.startswith("--"):
            raise UsageError(f"{option} is after the config key {opts[0]}; options go before the first key")
    if len(opts) % 2:
        raise UsageError(f"{opts[-1]} has no value; write config keys as KEY VALUE, after all options")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        default = _default(cfg, key)
        # yacs rejects an int for a float key.
        value = f"{text}.0" if isinstance(default, float) and text.lstrip("+-").isdigit() else text
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError):
            raise UsageError(_unknown_key(cfg, key)) from None
        except ValueError:
            raise UsageError(_wrong_type(key, default, text)) from None


def _check_file(path: Path, cfg: CN, derived: tuple[Path, ...] = ()) -> None:
    """Raise ValueError, naming the file, if a config or one that it is based on cannot be read or is based on itself.

    Args:
        path: of the config.
        cfg: the defaults.
        derived: files that are based on it.
    """
    if path in derived:
        raise ValueError(f"{path}: is based on itself, by _BASE_ of {derived[-1]}")
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{derived[-1]}: {error}" if derived else str(error)) from error
    _check_sections(path, content, cfg)
    bases = content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ValueError(f"{path}: _BASE_ is {base!r}, which is not the name of a file")
        if not base.startswith(("http://", "https://")):
            _check_file(Path(os.path.normpath(path.parent / os.path.expanduser(base))), cfg, (*derived, path))


def _check_sections(path: Path, content: Mapping[str, Any], cfg: CN, prefix: str = "") -> None:
    """Raise ValueError if a section of the config, such as MODEL, has a value, or none, instead of keys."""
    for key, value in content.items():
        if isinstance(cfg.get(key), CN):
            if not isinstance(value, dict):
                raise ValueError(f"{path}: {prefix}{key} is {value!r:.60}, but must be a section with keys")
            _check_sections(path, value, cfg[key], f"{prefix}{key}.")


def _explain(cfg: CN, message: str) -> str:
    """Return the message for an error of yacs about a config file."""
    unknown = re.match(r"Non-existent (?:config )?key: (\S+)", message)
    if unknown:
        return _unknown_key(cfg, unknown[1])
    mismatch = re.search(r"values \(.*? vs\. (.*)\) for config key: (\S+)", message, re.DOTALL)
    if mismatch:
        return _wrong_type(mismatch[2], _default(cfg, mismatch[2]), mismatch[1])
    return message


def _unknown_key(cfg: CN, key: str) -> str:
    """Suggest the nearest keys: of the same name in another section first, then by spelling."""
    known = list(_keys(cfg))
    last = key.rpartition(".")[2].lower()
    moved = [name for name in known if name.lower().endswith(f".{last}")]
    spelling = {name.lower(): name for name in known}
    close = [spelling[name] for name in difflib.get_close_matches(key.lower(), spelling, n=_MAX_SUGGESTIONS)]
    similar = list(dict.fromkeys(difflib.get_close_matches(key, moved, n=1, cutoff=0) + close))[:_MAX_SUGGESTIONS]
    hint = f"; did you mean {' or '.join(similar)}?" if similar else "; all keys are in samcp/config.py"
    return f"there is no config key {key}{hint}"


def _wrong_type(key: str, default: Any, text: str) -> str:
    if isinstance(default, CN):
        return f"{key} is a section; set one of its keys: {', '.join(f'{key}.{name}' for name in default)}"
    if isinstance(default, (tuple, list)):
        return f'{key} is {text!r}; it must be a list; write: {key} "{_as_tuple(text)}"'
    kind = _KINDS.get(type(default), f"of type {type(default).__name__}")
    return f"{key} is {text!r}; it must be {kind}, such as {default!r}"


def _as_tuple(text: str) -> tuple[Any, ...]:
    """Return the items of a list that lacks quotes, brackets or a comma.

    >>> _as_tuple("(train, 'val')"), _as_tuple("100")
    (('train', 'val'), (100,))
    """
    return tuple(map(_number_or_text, filter(None, (item.strip(" '\"()[]") for item in text.split(",")))))


def _number_or_text(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _default(cfg: CN, key: str) -> Any:
    """Return the value of a key such as "SOLVER.MAX_ITER", None if there is none."""
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, CN) else None
    return value


def _keys(cfg: CN, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        if isinstance(value, CN):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
