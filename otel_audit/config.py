"""Settings of the service: command line over configuration file over environment over defaults.

The file is YAML in the shape of a Collector's configuration. `_SETTINGS` is the one table of what can be set, under which
key, and which field it becomes; a key that is not in it is an error, with the key it most resembles.

Source: OpenTelemetry Collector, `receiver/otlpreceiver/README.md`, for the names below `receivers`.
"""

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import yaml

from otel_audit import names
from otel_audit.auditlog import LogSettings
from otel_audit.errors import ConfigError
from otel_audit.otlp import DecodeSettings
from otel_audit.receiver import GrpcSettings, HttpSettings, ReceiverSettings, parse_endpoint

__all__ = ["ServerSettings", "load", "setting_keys"]

_DEFAULT_DIRECTORY: Final = "./audit-log"
_PROTOCOLS: Final = "receivers.otlp.protocols"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything `otel-audit serve` needs.

    Args:
        directory: folder of the log.
        receiver: which protocols, on which addresses, within which limits.
        log: how the log stores.
        decode: what becomes a record.
    """

    directory: str = _DEFAULT_DIRECTORY
    receiver: ReceiverSettings = field(default_factory=ReceiverSettings)
    log: LogSettings = field(default_factory=LogSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)


# --- values -------------------------------------------------------------------------------------------------------------
class _UnfitError(ValueError):
    """The value does not fit; the text says what does."""


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _UnfitError("needs text")
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _UnfitError("needs a whole number above zero")
    return value


def _mebibytes(value: object) -> int:
    return _integer(value) << 20


def _endpoint(value: object) -> str:
    try:
        parse_endpoint(_text(value))
    except ConfigError as e:
        raise _UnfitError(f"{e.reason}; {e.hint}") from e
    return str(value)


_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(value: object) -> float:
    """Seconds of a duration as Go and the Collector write it."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise _UnfitError("needs a duration with its unit, such as 500ms, 60s, 15m or 1h30m")
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value)
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if seconds <= 0:
        raise _UnfitError("needs a duration above zero")
    return seconds


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _UnfitError("needs a list of texts")
    return tuple(_text(v) for v in value)


# --- the table ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Setting:
    """One setting: key in the file, path of the field in `ServerSettings`, how to read it, and its flag if it has one."""

    key: str
    target: str
    read: Callable[[object], object]
    flag: str = ""


_GRPC: Final = f"{_PROTOCOLS}.grpc"
_HTTP: Final = f"{_PROTOCOLS}.http"
_SETTINGS: Final = (
    _Setting(f"{_GRPC}.endpoint", "receiver.grpc.endpoint", _endpoint, "grpc"),
    _Setting(f"{_GRPC}.max_recv_msg_size_mib", "receiver.grpc.max_body_bytes", _mebibytes),
    _Setting(f"{_GRPC}.read_timeout", "receiver.grpc.receive_timeout_s", _duration),
    _Setting(f"{_GRPC}.workers", "receiver.grpc.workers", _integer),
    _Setting(f"{_HTTP}.endpoint", "receiver.http.endpoint", _endpoint, "http"),
    _Setting(f"{_HTTP}.max_request_body_size", "receiver.http.max_body_bytes", _integer),
    _Setting(f"{_HTTP}.read_timeout", "receiver.http.receive_timeout_s", _duration),
    _Setting(f"{_HTTP}.read_header_timeout", "receiver.http.header_timeout_s", _duration),
    _Setting(f"{_HTTP}.idle_timeout", "receiver.http.idle_timeout_s", _duration),
    _Setting(f"{_HTTP}.max_connections", "receiver.http.connections_max", _integer),
    _Setting("receivers.otlp.max_in_flight_mib", "receiver.intake.max_in_flight_bytes", _mebibytes),
    _Setting("receivers.otlp.retry_after", "receiver.intake.retry_after_s", _duration),
    _Setting("receivers.otlp.ack_timeout", "receiver.intake.ack_timeout_s", _duration),
    _Setting("log.directory", "directory", _text, "dir"),
    _Setting("log.name", "log.name", _text),
    _Setting("log.segment_rows", "log.segment_rows", _integer),
    _Setting("log.segment_age", "log.segment_age_s", _duration),
    _Setting("log.dedupe_window", "log.dedupe_window_s", _duration),
    _Setting("log.dedupe_ids_max", "log.dedupe_ids_max", _integer),
    _Setting("log.queue_records", "log.queue_records", _integer),
    _Setting("log.disk_reserve_mib", "log.disk_reserve_bytes", _mebibytes),
    _Setting("log.late_after", "log.late_s", _duration),
    _Setting("exclude_routes", "decode.exclude_routes", _texts),
)
_BY_KEY: Final = {s.key: s for s in _SETTINGS}
_BY_FLAG: Final = {s.flag: s for s in _SETTINGS if s.flag}
_SECTIONS: Final = {key.rsplit(".", n)[0] for key in _BY_KEY for n in range(1, key.count(".") + 1)}


def setting_keys() -> tuple[str, ...]:
    """Every key that a configuration file may have."""
    return tuple(_BY_KEY)


# --- loading ------------------------------------------------------------------------------------------------------------
def load(path: str | os.PathLike[str] | None = None, overrides: Mapping[str, object] | None = None) -> ServerSettings:
    """The settings of a server.

    Args:
        path: configuration file; None: none.
        overrides: what the command line says, by flag (`dir`, `grpc`, `http`) or by key of the file; None is "not said".

    Raises:
        ConfigError: the file cannot be read, or has a key that is not known or a value that does not fit.
    """
    said = {_BY_FLAG[k].key if k in _BY_FLAG else k: v for k, v in (overrides or {}).items() if v is not None}
    settings = ServerSettings(directory=os.environ.get(names.ENV_DIR) or _DEFAULT_DIRECTORY)
    if path is not None:
        settings = _apply_file(settings, os.fspath(path), said)
    for key, value in said.items():
        settings = _apply(settings, "command line", key, value)
    return settings


def _apply_file(settings: ServerSettings, path: str, said: Mapping[str, object]) -> ServerSettings:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError("read configuration", path, str(e), "check the path given with --config") from e
    except yaml.YAMLError as e:
        raise ConfigError("read configuration", path, f"not YAML: {e}".replace("\n", " ")) from e
    if tree is None:
        return settings
    present = list(_flat(path, tree))
    settings = _only_listed(settings, {key for key, _ in present}, said)
    for key, value in present:
        if key in _BY_KEY:
            settings = _apply(settings, path, key, value)
    return settings


def _flat(path: str, tree: object, above: str = "") -> Iterator[tuple[str, object]]:
    """Sections and settings of a file by their full keys; raises `ConfigError` for a key that is not known."""
    if not isinstance(tree, Mapping):
        raise ConfigError("read configuration", f"{path}, {above or 'as a whole'}", "needs keys and values below it")
    for name, value in tree.items():
        key = f"{above}.{name}" if above else f"{name}"
        if key not in _SECTIONS and key not in _BY_KEY:
            raise _unknown(path, key)
        yield key, value
        if key in _SECTIONS and value is not None:
            yield from _flat(path, value, key)


def _only_listed(settings: ServerSettings, present: Collection[str], said: Collection[str]) -> ServerSettings:
    """As a Collector does: once any protocol is listed, those that are not are off; unless the command line says so."""
    protocols = {"grpc": _GRPC, "http": _HTTP}
    wanted = {name for name, section in protocols.items() if section in present}
    if not wanted:
        return settings
    wanted |= {name for name, section in protocols.items() if any(key.startswith(f"{section}.") for key in said)}
    off: dict[str, Any] = dict.fromkeys(protocols.keys() - wanted)
    return replace(settings, receiver=replace(settings.receiver, **off))


def _apply(settings: ServerSettings, source: str, key: str, value: object) -> ServerSettings:
    setting = _BY_KEY.get(key)
    if setting is None:
        raise _unknown(source, key)
    try:
        return cast("ServerSettings", _with(settings, setting.target.split("."), setting.read(value)))
    except _UnfitError as e:
        raise ConfigError("read configuration", f"{source}, {key}", f"{value!r}: {e}") from e


_OPTIONAL: Final[Mapping[str, Callable[[], object]]] = {"grpc": GrpcSettings, "http": HttpSettings}


def _with(node: Any, path: list[str], value: object) -> Any:
    """A copy of a tree of dataclasses with the field at `path` set."""
    name, *rest = path
    if rest:
        below = getattr(node, name)
        value = _with(_OPTIONAL[name]() if below is None else below, rest, value)
    return replace(node, **{name: value})


def _unknown(source: str, key: str) -> ConfigError:
    above, _, name = key.rpartition(".")
    known = [k for k in (*_BY_KEY, *_SECTIONS) if k.rpartition(".")[0] == above]
    near = difflib.get_close_matches(name, [k.rpartition(".")[2] for k in known], n=1)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        elsewhere = difflib.get_close_matches(name, [k.rpartition(".")[2] for k in _BY_KEY], n=1)
        full = [k for k in _BY_KEY if elsewhere and k.endswith(f".{elsewhere[0]}")]
        hint = (
            f"did you mean {full[0]}?"
            if full
            else f"known here: {', '.join(sorted(k.rpartition('.')[2] for k in known))}"
        )
    return ConfigError("read configuration", f"{source}, {key}", "there is no such setting", hint)
