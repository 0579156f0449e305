"""Reading of yaml files that people write."""

from pathlib import Path
from typing import Any

import yaml

from proposal_cache.errors import reason
from samcp.errors import yaml_fault

_MAX_VALUES = 100_000  # with all aliases expanded; the longest file here has hundreds


class _Loader(yaml.SafeLoader):
    """Safe loader that rejects merge keys, which may expand to billions of values while they are loaded."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not supported", key.start_mark)
        super().flatten_mapping(node)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a yaml file of an object, without running code from it; an empty file is an empty object.

    Raises:
        ValueError: it is unreadable, or has unsafe tags, keys that are not text, or aliases that expand to too many
            values; the message names the file.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: cannot be read as yaml ({yaml_fault(error)})") from error
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as yaml ({reason(error)})") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be an object, KEY: VALUE, not {type(content).__name__}")
    if _count(content, {}) > _MAX_VALUES:
        raise ValueError(f"{path}: its aliases (*name) expand to more than {_MAX_VALUES} values")
    _require_text_keys(path, content)
    return content


def _count(value: Any, counted: dict[int, int]) -> int:
    """Return the number of values with aliases expanded; `counted` holds it by the id of each list and object."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counted:
        counted[id(value)] = _MAX_VALUES  # if it contains itself
        values = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(inner, counted) for inner in values)
    return counted[id(value)]


def _require_text_keys(path: Path, value: Any) -> None:
    if not isinstance(value, dict | list):
        return
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} is not text; put it in quotes")
    for inner in value.values() if isinstance(value, dict) else value:
        _require_text_keys(path, inner)
