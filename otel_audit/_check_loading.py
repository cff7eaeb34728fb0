"""Why capture was not loaded in the process of a check: how the command starts Python, and what is installed there."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from otel_audit import names
from otel_audit._check_run import Ran

__all__ = ["started_by", "why_not_loaded"]

_INSTRUMENT: Final = "opentelemetry-instrument"
_FAILED: Final = "Failed to auto initialize OpenTelemetry"
_IGNORES: Final = {
    "I": "runs Python isolated (-I)",
    "E": "has Python ignore the environment (-E)",
    "S": "runs Python without site (-S)",
}
_PROBE_S: Final = 30.0
_PROBE: Final = """
import importlib.metadata as m, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({
    "otel-audit": version("otel-audit"),
    "instrumentation": version("opentelemetry-instrumentation"),
    "entry": any(e.name == "otel_audit" for e in m.entry_points(group="opentelemetry_pre_instrument")),
}))
"""


def why_not_loaded(command: list[str], ran: Ran) -> tuple[str, str, str]:
    """What is the case (an id, and in words), and the remedy."""
    words = ran.interpreter or _by_shebang(command)
    there = _probe(words[0]) if words else None
    python = words[0] if words else "python"
    if there is not None and there["otel-audit"] is None:
        return "not-there", f"otel-audit is not installed for {python}", f"{python} -m pip install otel-audit"
    if not _instrumented(command):
        shown = " ".join(command)
        remedy = f"start it with: {_INSTRUMENT} {shown}; or call otel_audit.install() before the framework is imported"
        return (
            "not-started",
            f"the command is not started with {_INSTRUMENT}, and does not call otel_audit.install()",
            remedy,
        )
    for letter in _flags(words[1:]):
        if letter in _IGNORES:
            what = f"the command {_IGNORES[letter]}, which keeps {_INSTRUMENT} out"
            return "isolated", what, f"start it without -{letter}, or call otel_audit.install() in the application"
    if there is not None and not there["entry"]:
        what = f"otel-audit can be imported by {python}, and is not installed as a package"
        return "no-entry-point", what, f"{python} -m pip install otel-audit"
    if _FAILED in ran.output:
        error = _error_in(ran.output)
        what = f"{_INSTRUMENT} gave up before capture was loaded" + (f": {error}" if error else "")
        return (
            "auto-initialize",
            what,
            "fix or remove the package that it names; OTEL_PYTHON_DISTRO and _CONFIGURATOR choose",
        )
    what = "capture was not loaded in any process of the command"
    return (
        "not-loaded",
        what,
        "does something between them clear PYTHONPATH (sudo, env -i), or not start Python at all?",
    )


def started_by(command: list[str]) -> str | None:
    """The program that `opentelemetry-instrument` at the front of a command becomes; None: it is not there, or unclear."""
    if not command or Path(command[0]).name != _INSTRUMENT:
        return None
    words = iter(command[1:])
    for word in words:
        if not word.startswith("-"):
            return word
        if word in ("-h", "--help", "--version"):
            return None
        if word != "--" and "=" not in word:
            next(words, None)  # each of its options takes a value
    return None


def _instrumented(command: list[str]) -> bool:
    by_path = "opentelemetry/instrumentation/auto_instrumentation" in os.environ.get("PYTHONPATH", "")
    return by_path or any(Path(word).name == _INSTRUMENT for word in command)


def _flags(words: list[str]) -> str:
    """The one-letter options of a Python command line, up to the program."""
    found = ""
    for word in words:
        if not re.match(r"-[A-Za-z]", word):
            break
        found += word[1:]
        if word[-1] in "cm":
            break
    return found


def _by_shebang(command: list[str]) -> list[str]:
    """The interpreter in the first line of the first script in the command, or the command itself if it is Python."""
    for word in command:
        if re.match(r"(python|pypy)[\d.]*$", Path(word).name):
            found = shutil.which(word)
            return [found, *command[command.index(word) + 1 :]] if found else []
        path = shutil.which(word)
        if path is None or Path(word).name == _INSTRUMENT:
            continue
        try:
            with Path(path).open("rb") as file:
                first = file.readline(512).decode(errors="replace")
        except OSError:
            continue
        if first.startswith("#!"):
            return first[2:].strip().removeprefix("/usr/bin/env ").split()
    return []


def _probe(python: str) -> dict[str, Any] | None:
    """What is installed for an interpreter; None when it cannot be asked."""
    environment = {k: v for k, v in os.environ.items() if k != names.ENV_CHECK}
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter of the developer's command
            [python, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return found if isinstance(found, dict) else None


def _error_in(output: str) -> str:
    """The exception's line of the traceback that follows."""
    lines = output.partition(_FAILED)[2].splitlines()
    return next((line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Conflict)\b", line)), "")
