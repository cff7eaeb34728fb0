"""Disks and clocks that do as they are told, for a process of any language (`native/`)."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tools import ROOT, Tool, run

_SOURCES = ROOT / "tests" / "collector" / "native"
_FLAGS = ["-O2", "-Wall", "-Wextra", "-Werror"]


def _build(folder: Path) -> None:
    run(["gcc", *_FLAGS, "-o", str(folder / "brake"), str(_SOURCES / "brake.c")], folder)
    run(["gcc", *_FLAGS, "-shared", "-fPIC", "-o", str(folder / "clock.so"), str(_SOURCES / "clock.c")], folder)


NATIVE = Tool("native", ("gcc",), tuple(p.read_text() for p in sorted(_SOURCES.glob("*.c"))), _build)


def _native() -> Path:
    """The folder with both, built in a moment if need be; skips the test where there is no compiler."""
    try:
        return NATIVE.make()
    except RuntimeError as e:
        pytest.skip(f"cannot build {_SOURCES.name}/: {e}")


def _say(file: Path, text: str) -> None:
    """Whoever reads the file finds the old text or the new one, never half of it."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


class Brake:
    """Decides over each sync that the process run by `prefix` asks of its disk.

    Args:
        file: through which it is told.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.release()
        self.prefix: Sequence[str | Path] = (_native() / "brake", file)

    def delay(self, each_ms: int) -> None:
        """Each sync takes so much longer."""
        _say(self._file, f"{each_ms} 0 0\n")

    def fail(self, number: int = errno.EIO) -> None:
        """Each sync fails."""
        _say(self._file, f"0 {number} 0\n")

    def kill_at(self, sync: int) -> None:
        """Instead of its `sync`-th sync from now the process is killed."""
        _say(self._file, f"0 0 {sync}\n")

    def release(self) -> None:
        """As any other disk."""
        _say(self._file, "0 0 0\n")


class Clock:
    """The wall clock of a process that is run with `environment`.

    Args:
        file: through which it is set.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        preload = os.pathsep.join(filter(None, [str(_native() / "clock.so"), os.environ.get("LD_PRELOAD", "")]))
        self.environment = {"LD_PRELOAD": preload, "CLOCK_OFFSET_FILE": str(file)}

    def set(self, offset_s: int) -> None:
        """So far ahead of the machine's."""
        _say(self._file, f"{offset_s}\n")
