"""Settings of the service: command line over configuration file over environment over defaults.

The file is YAML in the shape of a Collector's configuration, `${env:VAR}` included. A key that is not known is an error,
with the key it most resembles. All that is wrong with a file is found at once.
"""

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from otel_audit import names, receiver
from otel_audit._config_settings import (
    BY_FLAG,
    BY_KEY,
    DEFAULT_DIRECTORY,
    OPTIONAL,
    PROTOCOLS,
    SECTIONS,
    ServerSettings,
)
from otel_audit._config_values import UnfitError
from otel_audit._senders_file import load_senders
from otel_audit._yaml_file import Node, load_yaml, must_be_set
from otel_audit.errors import ConfigError
from otel_audit.forwarder import OtlpLogsSettings
from otel_audit.receiver import ReceiverSettings, parse_endpoint

__all__ = ["ServerSettings", "load", "problems", "setting_keys", "tree"]

_OPERATION: Final = "read configuration"
_COMMAND_LINE: Final = "command line"
_HIDDEN: Final = "[redacted]"
_EXPORTER: Final = "exporters.otlp_logs"
_EVERYWHERE: Final = {"0.0.0.0": {"127.0.0.1"}, "::": {"127.0.0.1", "::1"}}  # noqa: S104 - not listened on here
_LAST_LINE: Final = 1 << 31


def setting_keys() -> tuple[str, ...]:
    """Every key that a configuration file may have."""
    return tuple(BY_KEY)


def load(path: str | os.PathLike[str] | None = None, overrides: Mapping[str, object] | None = None) -> ServerSettings:
    """The settings of a server.

    Args:
        path: configuration file; None: none.
        overrides: what the command line says, by flag (`dir`, `grpc`, `http`) or by key of the file; None is "not said".

    Raises:
        ConfigError: the file cannot be read, or has a key that is not known or a value that does not fit; the first of
            all that is wrong.
    """
    loaded = _Loading(overrides or {})
    settings = loaded.settings(path)
    if loaded.problems:
        raise loaded.problems[0]
    return settings


def problems(path: str | os.PathLike[str]) -> list[ConfigError]:
    """All that is wrong with a configuration file, in the order of its lines, and with the file of senders it names."""
    loaded = _Loading({})
    try:
        settings = loaded.settings(path)
    except ConfigError as e:
        return [e]
    return loaded.problems or [*receiver.unfit(settings.receiver), *_senders_problems(settings)]


def _senders_problems(settings: ServerSettings) -> Iterator[ConfigError]:
    """What is wrong with the file of senders, where it is on this machine."""
    path = settings.receiver.access.senders_file
    if path is not None and Path(path).exists():
        try:
            senders = load_senders(path)
        except ConfigError as e:
            yield e
        else:
            error = None if settings.receiver.certificates else receiver.never_known(senders)
            if error is not None:
                yield error


def tree(settings: ServerSettings) -> dict[str, Any]:
    """The configuration file that says what `settings` say, every key written out; secrets are not shown.

    A key whose value is decided when the service starts is left out.
    """
    written: dict[str, Any] = {}
    for key, setting in BY_KEY.items():
        node: Any = settings
        for name in setting.target.split("."):
            node = getattr(node, name) if node is not None else None
        if node is None:
            continue
        *above, name = key.split(".")
        section = written
        for part in above:
            section = section.setdefault(part, {})
        section[name] = _HIDDEN if setting.secret and node else setting.kind.write(node)
    return written


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key that was given, and its value."""

    key: str
    node: Node
    source: str


class _Loading:
    """One reading of everything that says something; collects what is wrong."""

    def __init__(self, overrides: Mapping[str, object]) -> None:
        said = {BY_FLAG[k].key if k in BY_FLAG else k: v for k, v in overrides.items() if v is not None}
        self._said = {key: Node(value, _COMMAND_LINE, 0) for key, value in said.items()}
        self._unset_lines: set[int] = set()
        self._problems: list[tuple[int, ConfigError]] = []  # with their lines

    @property
    def problems(self) -> list[ConfigError]:
        """What is wrong, in the order of the lines; what the command line says comes first."""
        return [error for _, error in sorted(self._problems, key=lambda problem: problem[0])]

    def _wrong(self, node: Node, error: ConfigError) -> None:
        self._problems.append((node.line, error))

    def settings(self, path: str | os.PathLike[str] | None) -> ServerSettings:
        settings = ServerSettings(directory=os.environ.get(names.ENV_DIR) or DEFAULT_DIRECTORY)
        if path is not None:
            root = load_yaml(path, unset=self._unset)
            present = list(self._flat(root)) if root.value is not None else []
            settings = self._only_listed(settings, {e.key for e in present})
            for entry in present:
                if entry.key == _EXPORTER:  # it is meant to be on even where nothing is set below it
                    settings = replace(settings, otlp_logs=settings.otlp_logs or OtlpLogsSettings())
                if entry.key in BY_KEY:
                    settings = self._apply(settings, entry)
        for key, node in self._said.items():
            settings = self._apply(settings, _Entry(key, node, _COMMAND_LINE))
        if settings.otlp_logs is not None:
            self._check(settings.otlp_logs, settings.receiver, path)
        return settings

    def _check(self, exporter: OtlpLogsSettings, own: ReceiverSettings, path: str | os.PathLike[str] | None) -> None:
        """What can be said of an exporter only once all of its settings are read."""
        try:
            _check_exporter(exporter, own)
        except ConfigError as e:
            self._problems.append((_LAST_LINE, ConfigError(_OPERATION, f"{path}, {_EXPORTER}", e.reason, e.hint)))

    def _unset(self, node: Node, name: str) -> str:
        """What stands for a variable that is not set: nothing, and what is wrong with that is not said twice."""
        try:
            return must_be_set(node, name)
        except ConfigError as e:
            self._wrong(node, e)
            self._unset_lines.add(node.line)
        return ""

    def _flat(self, node: Node, above: str = "") -> Iterator[_Entry]:
        """Sections and settings of a file by their full keys."""
        if not isinstance(node.value, dict):
            where = above or "as a whole"
            self._wrong(node, ConfigError(_OPERATION, f"{node.place}, {where}", "needs keys and values below it"))
            return
        for name, below in node.mapping.items():
            key = f"{above}.{name}" if above else name
            if key not in SECTIONS and key not in BY_KEY:
                self._wrong(below, _unknown(below.place, key))
                continue
            yield _Entry(key, below, below.place)
            if key in SECTIONS and below.value is not None:
                yield from self._flat(below, key)

    def _only_listed(self, settings: ServerSettings, present: Collection[str]) -> ServerSettings:
        """As a Collector does: once any protocol is listed, those that are not are off; unless the command line says so."""
        wanted = {name for name, section in PROTOCOLS.items() if section in present}
        if not wanted:
            return settings
        wanted |= {n for n, section in PROTOCOLS.items() if any(key.startswith(f"{section}.") for key in self._said)}
        off: dict[str, Any] = dict.fromkeys(PROTOCOLS.keys() - wanted)
        return replace(settings, receiver=replace(settings.receiver, **off))

    def _apply(self, settings: ServerSettings, entry: _Entry) -> ServerSettings:
        setting = BY_KEY.get(entry.key)
        if setting is None:
            self._wrong(entry.node, _unknown(entry.source, entry.key))
            return settings
        try:
            value = setting.kind.read(entry.node)
        except UnfitError as e:
            at = e.node or entry.node
            if at.line in self._unset_lines:
                return settings
            place = _COMMAND_LINE if entry.source == _COMMAND_LINE else at.place
            shown = _HIDDEN if setting.secret else repr(at.plain())
            self._wrong(at, ConfigError(_OPERATION, f"{place}, {entry.key}", f"{shown}: {e}"))
            return settings
        return cast("ServerSettings", _with(settings, setting.target.split("."), value))


def _with(node: Any, path: list[str], value: object) -> Any:
    """A copy of a tree of dataclasses with the field at `path` set."""
    name, *rest = path
    if rest:
        below = getattr(node, name)
        value = _with(OPTIONAL[name]() if below is None else below, rest, value)
    return replace(node, **{name: value})


def _check_exporter(exporter: OtlpLogsSettings, own: ReceiverSettings) -> None:
    exporter.check()
    if any(_leads_to(exporter, protocol.endpoint) for protocol in (own.grpc, own.http) if protocol is not None):
        reason = "the endpoint is this service itself, which would log again what it no longer remembers to have"
        raise ConfigError(_OPERATION, _EXPORTER, reason, "name the endpoint of another service")


def _leads_to(exporter: OtlpLogsSettings, listening: str) -> bool:
    """Whether an exporter would reach who listens there, as far as that can be said without looking up names."""
    url = urlsplit(exporter.endpoint)
    usual = 443 if exporter.tls else {"grpc": 4317}.get(exporter.protocol, 80)
    own, port = parse_endpoint(listening)
    if (url.port or usual) != port or port == 0:
        return False
    here = {"localhost": {"127.0.0.1", "::1"}}
    host = (url.hostname or "").lower()
    reached, heard = here.get(host, {host}), here.get(own.lower(), {own.lower()})
    heard |= _EVERYWHERE.get(own, set())
    return bool(reached & heard)


def _unknown(source: str, key: str) -> ConfigError:
    above, _, name = key.rpartition(".")
    known = [k for k in (*BY_KEY, *SECTIONS) if k.rpartition(".")[0] == above]
    near = difflib.get_close_matches(name, [k.rpartition(".")[2] for k in known], n=1)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        elsewhere = difflib.get_close_matches(name, [k.rpartition(".")[2] for k in BY_KEY], n=1)
        full = [k for k in BY_KEY if elsewhere and k.endswith(f".{elsewhere[0]}")]
        here = ", ".join(sorted({k.rpartition(".")[2] for k in known}))
        hint = f"did you mean {full[0]}?" if full else f"known here: {here}"
    return ConfigError(_OPERATION, f"{source}, {key}", "there is no such setting", hint)
