"""YAML in the Collector's manner: every value knows its line, and `${env:VAR}` stands for an environment variable.

Both our own configuration and the Collector's, which `otel-audit doctor` reads, are loaded here.

Source: OpenTelemetry Collector, `confmap/README.md` (expansion, merging); YAML 1.1 as PyYAML reads it.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from otel_audit.errors import ConfigError

__all__ = ["Node", "Unset", "load_yaml", "merge", "must_be_set", "parse_yaml"]

_OPERATION: Final = "read configuration"
_REFERENCE: Final = re.compile(r"\$\$|\$\{(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?(?P<rest>[^${}]*)\}")
_QUOTED: Final = re.compile(r"'(?!<)[^']{2,}'|\"(?!<)[^\"]{2,}\"")  # names of aliases and tags; not `<block end>`
_QUOTE: Final = "quote a value that has special characters"
_NODES_MAX: Final = 100_000  # a few lines of aliases can stand for billions of values
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Unset = Callable[["Node", str], str]
"""What stands for a variable that is not set: takes the place and the name, gives the text, or raises."""


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a file, and where it stands.

    Args:
        value: a scalar; or a dict of key to `Node`; or a list of `Node`.
        file: the file's name as it was given.
        line: where the value begins, from 1; for a value under a key, where the key stands.
        text: what an environment variable held that a scalar was read from, for a setting that wants text.
    """

    value: Any
    file: str
    line: int
    text: str = ""

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    @property
    def mapping(self) -> "dict[str, Node]":
        """The values below by key; empty where there is none."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> "list[Node]":
        """The values of a list; empty where there is none."""
        return self.value if isinstance(self.value, list) else []

    def at(self, *path: str) -> "Node | None":
        """The node at a path of keys; None where there is none."""
        node: Node | None = self
        for key in path:
            node = node.mapping.get(key) if node is not None else None
        return node

    def plain(self) -> Any:
        """Dicts, lists and scalars, without the places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def load_yaml(path: str | os.PathLike[str], *, unset: Unset | None = None) -> Node:
    """The whole of a YAML file, with environment variables put in.

    Args:
        path: the file.
        unset: what stands for a variable that is not set and has no default; None: that is an error.

    Raises:
        ConfigError: the file cannot be read, is not YAML, has a key twice, or a reference that cannot be resolved.
    """
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(_OPERATION, name, str(e), "check the path") from e
    return parse_yaml(text, name, unset=unset)


def parse_yaml(text: str, file: str, *, unset: Unset | None = None) -> Node:
    """As `load_yaml`, for a text; `file` is what its places are called."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None:
            return Node(None, file, 1)
        return _Reader(file, unset or must_be_set, root).read(root, root.start_mark.line + 1)
    except yaml.YAMLError as e:
        raise _not_yaml(e, file) from e
    except RecursionError as e:
        raise ConfigError(_OPERATION, file, "it is nested too deeply") from e


def _not_yaml(error: yaml.YAMLError, file: str) -> ConfigError:
    """What is wrong and where; not what stands there, which may be a secret, as PyYAML's own text has it."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ConfigError(_OPERATION, file, f"not YAML: {' '.join(str(error).split())}")
    mark = error.problem_mark
    if error.problem == "but found another document":
        hint = "take the one that is meant out into a file of its own; of a ConfigMap, the text below its key"
        return ConfigError(_OPERATION, f"{file}:{mark.line + 1}", "a second YAML document begins", hint)
    problem = _QUOTED.sub("…", error.problem or "it cannot be read")
    place = f"{file}:{mark.line + 1}"
    return ConfigError(_OPERATION, place, f"not YAML: {problem}, at column {mark.column + 1}", _QUOTE)


def merge(below: Node, above: Node) -> Node:
    """Two files as a Collector merges them: mappings key by key, anything else is the later file's."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, above.file, above.line)


class _Reader:
    """Turns the nodes of PyYAML, which know their lines, into ours."""

    def __init__(self, file: str, unset: Unset, root: yaml.Node) -> None:
        self._file = file
        self._unset = unset
        self._loader = yaml.SafeLoader("")
        self._open: set[int] = {id(root)}
        self._read = 0

    def read(self, node: yaml.Node, line: int) -> Node:
        self._read += 1
        if self._read > _NODES_MAX:
            raise ConfigError(
                _OPERATION, self._file, f"it is too large: over {_NODES_MAX} values, aliases counted in full"
            )
        if isinstance(node, yaml.MappingNode):
            return Node(dict(self._pairs(node)), self._file, line)
        if isinstance(node, yaml.SequenceNode):
            return Node([self._below(n, n.start_mark.line + 1) for n in node.value], self._file, line)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, AttributeError) as e:
            what = node.tag.rpartition(":")[2]
            reason = f"{str(node.value)[:40]!r} has the look of a value of type {what}, and is none"
            raise ConfigError(_OPERATION, f"{self._file}:{line}", reason, "quote it if it is text") from e
        return (
            self._expanded(Node(value, self._file, line)) if isinstance(value, str) else Node(value, self._file, line)
        )

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, Node]]:
        own = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in own:
            if own.count(key) > 1:
                raise ConfigError(
                    _OPERATION, f"{self._file}:{node.start_mark.line + 1}", f"the key {key} is there twice"
                )
        self._loader.flatten_mapping(node)
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                place = f"{self._file}:{key.start_mark.line + 1}"
                raise ConfigError(_OPERATION, place, "a key must be text", "quote it, or look at the indentation")
            yield key.value, self._below(value, key.start_mark.line + 1)

    def _below(self, node: yaml.Node, line: int) -> Node:
        if id(node) in self._open:
            raise ConfigError(_OPERATION, f"{self._file}:{line}", "an alias that holds itself")
        self._open.add(id(node))
        try:
            return self.read(node, line)
        finally:
            self._open.discard(id(node))

    # --- environment ----------------------------------------------------------------------------------------------------
    def _expanded(self, node: Node) -> Node:
        text: str = node.value
        if "$" not in text:
            return node
        whole = _REFERENCE.fullmatch(text)
        if whole is not None and whole[0] != "$$" and whole["scheme"] in (None, "env"):
            found = self._look_up(node, whole)
            return Node(_typed(found), node.file, node.line, found)
        return Node(_REFERENCE.sub(lambda m: self._substitute(node, m), text), node.file, node.line)

    def _substitute(self, node: Node, match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match["scheme"] not in (None, "env"):
            return match[0]  # another provider's: not ours to resolve
        return self._look_up(node, match)

    def _look_up(self, node: Node, match: re.Match[str]) -> str:
        name, has_default, default = match["rest"].partition(":-")
        if not _ENV_NAME.fullmatch(name):
            hint = "write it as ${env:NAME} or ${env:NAME:-default}; a dollar sign itself is $$"
            raise ConfigError(_OPERATION, node.place, f"{match[0]} names no environment variable", hint)
        value = os.environ.get(name)
        if value is None:
            return default if has_default else self._unset(node, name)
        return value


def _typed(text: str) -> object:
    """A variable that stands alone is read as YAML, so that numbers, booleans and lists arrive as such."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float) else text


def must_be_set(node: Node, name: str) -> str:
    """An `Unset` that raises `ConfigError`."""
    hint = f"set it, or give a default: ${{env:{name}:-default}}"
    raise ConfigError(_OPERATION, node.place, f"the environment variable {name} is not set", hint)
