"""Reading of yaml files that people write."""

from pathlib import Path
from typing import Any

import yaml

from proposal_cache.errors import reason
from samcp.errors import yaml_fault


class _Loader(yaml.SafeLoader):
    """Safe loader that rejects aliases: nested ones expand to billions of nodes, and no file here needs any."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a yaml file of an object, without running code from it; an empty file is an empty object.

    Raises:
        ValueError: it is unreadable, or has unsafe tags, aliases or keys that are not text; the message names the file.
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
    _require_text_keys(path, content)
    return content


def _require_text_keys(path: Path, content: dict[Any, Any]) -> None:
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} is not text; put it in quotes")
        if isinstance(value, dict):
            _require_text_keys(path, value)
