"""A Collector's configuration: components, pipelines, and which of them lead to an exporter."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from otel_audit._yaml_file import Node, load_yaml, merge, parse_yaml
from otel_audit.errors import ConfigError

__all__ = ["KINDS", "Collector", "Pipeline", "Ref", "deepest", "load_collector", "seconds", "truth"]

KINDS: Final = ("receivers", "processors", "exporters", "connectors", "extensions")
SIGNALS: Final = ("traces", "logs")
"""What otel-audit takes: calls as spans, and audit records as OTLP logs."""

_PROVIDER: Final = re.compile(r"\$\{(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<rest>[^${}]*)\}")
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Ref:
    """A component named somewhere: its id, and where it is named."""

    id: str
    node: Node

    @property
    def type(self) -> str:
        """`otlp` of `otlp/audit`."""
        return type_of(self.id)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One pipeline."""

    id: str
    node: Node
    receivers: tuple[Ref, ...]
    processors: tuple[Ref, ...]
    exporters: tuple[Ref, ...]

    @property
    def signal(self) -> str:
        """`traces` of `traces/audit`."""
        return type_of(self.id)


@dataclass(slots=True)
class Collector:
    """One Collector.

    Args:
        name: its files, for messages.
        root: all of its configuration.
        components: by kind (`receivers`, …) and id.
        pipelines: by id.
        extensions: those that are started.
        unset: environment variables that are not set, with where.
        unresolved: references to other providers that could not be read, with where and why.
    """

    name: str
    root: Node
    components: dict[str, dict[str, Node]] = field(default_factory=dict)
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    extensions: tuple[Ref, ...] = ()
    unset: list[tuple[Node, str]] = field(default_factory=list)
    unresolved: list[tuple[Node, str]] = field(default_factory=list)

    def component(self, kind: str, ref: Ref) -> Node:
        """A component's settings; where it is not defined, none, at the place that names it."""
        return self.components[kind].get(ref.id) or Node(None, ref.node.file, ref.node.line)

    def fed_by(self, connector: str) -> Iterator[Pipeline]:
        """The pipelines that give to a connector."""
        return (p for p in self.pipelines.values() if any(r.id == connector for r in p.exporters))

    def leading_to(self, exporter: str) -> list[Pipeline]:
        """The pipelines that lead to an exporter, directly or through connectors of the same signal; nearest first."""
        found = [
            p for p in self.pipelines.values() if p.signal in SIGNALS and any(r.id == exporter for r in p.exporters)
        ]
        for pipeline in found:  # grows on the way
            for ref in pipeline.receivers:
                if ref.id in self.components["connectors"]:
                    found += [p for p in self.fed_by(ref.id) if p.signal == pipeline.signal and p not in found]
        return found


def type_of(name: str) -> str:
    """`otlp` of `otlp/audit`."""
    return name.partition("/")[0].strip()


def deepest(node: Node, *path: str) -> Node:
    """The node at a path, or the last one on the way that is there: the best line for what is missing."""
    for key in path:
        below = node.mapping.get(key)
        if below is None:
            break
        node = below
    return node


def truth(node: Node | None, default: bool) -> bool:
    """A boolean setting."""
    if node is None or node.value is None or node.value == "":
        return default
    return node.value if isinstance(node.value, bool) else str(node.value).lower() in ("true", "1", "t")


def seconds(node: Node | None) -> float | None:
    """A duration setting in seconds; None where there is none, or it is no duration."""
    if node is None or node.value is None:
        return None
    if isinstance(node.value, int | float):
        return float(node.value) * 1e-9  # a bare number is nanoseconds
    text = str(node.value).strip()
    if text in ("0", "+0", "-0"):
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


# --- reading --------------------------------------------------------------------------------------------------------------
def load_collector(files: Sequence[str]) -> Collector:
    """The Collector that some files configure together, merged in order.

    Raises:
        ConfigError: a file cannot be read, or is not the configuration of a Collector.
    """
    unset: list[tuple[Node, str]] = []

    def empty(node: Node, name: str) -> str:
        unset.append((node, name))
        return ""

    unresolved: list[tuple[Node, str]] = []
    root: Node | None = None
    for file in files:
        node = _resolved(_configuration(load_yaml(file, unset=empty)), unresolved)
        if node.value is not None and not isinstance(node.value, dict):
            raise ConfigError("read configuration", node.place, "it is not the configuration of a Collector")
        root = node if root is None or root.value is None else merge(root, node)
    assert root is not None
    if "exporters" not in root.mapping and {"log", "exclude_routes"} & root.mapping.keys():
        hint = "otel-audit validate checks it; doctor is for Collectors"
        raise ConfigError("read configuration", root.file, "it is the configuration of otel-audit serve", hint)
    collector = Collector(" + ".join(files), root, unset=unset, unresolved=unresolved)
    collector.components = {kind: dict(_child(root, kind).mapping) for kind in KINDS}
    service = _child(root, "service")
    collector.extensions = _refs(service.at("extensions"))
    for name, node in _child(service, "pipelines").mapping.items():
        lists = (_refs(node.at(key)) for key in ("receivers", "processors", "exporters"))
        collector.pipelines[name] = Pipeline(name, node, *lists)
    return collector


def _child(node: Node, key: str) -> Node:
    return node.mapping.get(key) or Node(None, node.file, node.line)


def _refs(node: Node | None) -> tuple[Ref, ...]:
    if node is None or node.value is None:
        return ()
    items = node.items or ([node] if isinstance(node.value, str) and node.value else [])
    return tuple(Ref(str(item.value).strip(), item) for item in items)


def _configuration(node: Node) -> Node:
    """The configuration in a file: all of it, or what is below `spec.config` of a Collector of the Kubernetes Operator."""
    kind, config = node.at("kind"), node.at("spec", "config")
    if kind is None or kind.value != "OpenTelemetryCollector" or config is None:
        return node
    return parse_yaml(config.value, config.file) if isinstance(config.value, str) else config


def _resolved(node: Node, unresolved: list[tuple[Node, str]], depth: int = 0) -> Node:
    """A tree with `${file:…}` and `${yaml:…}` put in; what cannot be is noted and becomes nothing."""
    if isinstance(node.value, dict):
        below = {key: _resolved(n, unresolved, depth) for key, n in node.value.items()}
        return Node(below, node.file, node.line)
    if isinstance(node.value, list):
        return Node([_resolved(n, unresolved, depth) for n in node.value], node.file, node.line)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    whole = _PROVIDER.fullmatch(node.value.strip())
    try:
        if whole and whole["scheme"] == "file" and depth < 8:
            found = load_yaml(whole["rest"], unset=lambda *_: "")
            return Node(_resolved(found, unresolved, depth + 1).value, node.file, node.line)
        if whole and whole["scheme"] == "yaml":
            return Node(_inline(whole["rest"], node).value, node.file, node.line)
    except ConfigError as e:
        unresolved.append((node, f"{node.value}: {e.reason}"))
        return Node(None, node.file, node.line)
    match = _PROVIDER.search(node.value)
    if match is None:
        return node  # a dollar sign and a brace that belong to the value
    unresolved.append((node, match[0]))
    return Node(None, node.file, node.line) if whole else node


def _inline(text: str, node: Node) -> Node:
    """`${yaml:a::b: c}`: two colons go down one level."""
    found = parse_yaml(text, node.file, unset=lambda *_: "")
    for key, below in list(found.mapping.items()):
        first, *rest = key.split("::")
        for part in reversed(rest):
            below = Node({part: below}, node.file, node.line)  # noqa: PLW2901 - wrapped level by level
        if rest:
            found.mapping.pop(key)
            found.mapping[first] = below
    return found
