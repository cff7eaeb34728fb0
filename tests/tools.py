"""Programs that some tests need beside Python, built once and kept outside of the repository.

`make test-tools` (`python -m tests.tools`) builds them all into `$XDG_CACHE_HOME/otel-audit/tools/<name>-<hash>`; the hash is
of everything that goes into one. A test asks for a tool, and is skipped with the reason where it has not been built.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]

COLLECTOR_EXTRAS = ("exporter/fileexporter", "exporter/debugexporter")
"""Components that tests and benchmarks compare with, and no file of collector-config/ uses."""


@dataclass(frozen=True)
class Tool:
    """Something to build.

    Args:
        name: of its folder in the cache.
        needs: commands that must be there to build it.
        inputs: everything that decides what is built.
        build: makes it in the folder it is given.
    """

    name: str
    needs: tuple[str, ...]
    inputs: tuple[str, ...]
    build: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        base = os.environ.get("XDG_CACHE_HOME")
        cache = (Path(base) if base else Path.home() / ".cache") / "otel-audit" / "tools"
        digest = hashlib.sha256(repr(self.inputs).encode()).hexdigest()[:12]
        return cache / f"{self.name}-{digest}"

    def get(self) -> Path:
        """The folder, for a test; skips the test where it has not been built."""
        if not (self.folder / "complete").exists():
            pytest.skip(f"{self.name} is not there: `make test-tools` builds it (needs {', '.join(self.needs)})")
        return self.folder

    def make(self) -> Path:
        """The folder, built if need be; raises `RuntimeError` where a command is missing."""
        missing = [command for command in self.needs if shutil.which(command) is None]
        if missing:
            raise RuntimeError(f"{self.name} needs {', '.join(missing)}")
        cache = self.folder.parent
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self.folder / "complete").exists():
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir()
                self.build(self.folder)
                (self.folder / "complete").touch()
        return self.folder


def run(command: list[str], folder: Path, **environment: str) -> None:
    """Run a command in a folder; raises with its output if it fails."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


# --- the Collector ------------------------------------------------------------------------------------------------------
_CONTRIB = "github.com/open-telemetry/opentelemetry-collector-contrib"


def _manifest() -> dict[str, Any]:
    """The manifest users build from, with what only tests need."""
    manifest = yaml.safe_load((ROOT / "collector-config" / "builder.yaml").read_text())
    version = manifest["dist"]["version"]
    for extra in COLLECTOR_EXTRAS:
        module = "go.opentelemetry.io/collector" if extra.endswith("debugexporter") else _CONTRIB
        manifest["exporters"].append({"gomod": f"{module}/{extra} v{version}"})
    return dict(manifest)


def _modules(manifest: dict[str, Any]) -> list[str]:
    """`path@version` of every module that a manifest names, and of what the builder's main program is made of."""
    kinds = ("extensions", "receivers", "processors", "exporters", "providers")
    named = [component["gomod"].replace(" ", "@") for kind in kinds for component in manifest[kind]]
    return [*named, f"go.opentelemetry.io/collector/otelcol@v{manifest['dist']['version']}"]


def _build_collector(folder: Path) -> None:
    manifest = _manifest()
    version = manifest["dist"]["version"]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        manifest["dist"]["output_path"] = "source"
        (work / "builder.yaml").write_text(yaml.safe_dump(manifest))
        builder = f"go.opentelemetry.io/collector/cmd/builder@v{version}"
        # Without its `go mod tidy`, which also wants the modules that only the components' own tests use.
        run(["go", "run", builder, "--config", "builder.yaml", "--skip-compilation", "--skip-get-modules"], work)
        required = [f"-require={module}" for module in _modules(manifest)]
        run(["go", "mod", "init", "otelcol"], work / "source")
        run(["go", "mod", "edit", *required], work / "source")
        flags = ["-mod=mod", "-trimpath", "-ldflags=-s -w"]
        run(["go", "build", *flags, "-o", str(folder / "otelcol"), "."], work / "source", CGO_ENABLED="0")


COLLECTOR = Tool("collector", ("go",), (str(_manifest()), "1"), _build_collector)

# --- promtool, which reads and tests alert rules -------------------------------------------------------------------------
_PROMETHEUS = "github.com/prometheus/prometheus"
_PROMETHEUS_VERSION = "v0.316.0"


def _build_promtool(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        run(["go", "mod", "init", "promtool"], work)
        run(["go", "mod", "edit", f"-require={_PROMETHEUS}@{_PROMETHEUS_VERSION}"], work)
        # The tag leaves out the discovery of targets in thirty clouds, which is most of it.
        flags = ["-mod=mod", "-trimpath", "-ldflags=-s -w", "-tags=remove_all_sd", "-o", str(folder / "promtool")]
        run(["go", "build", *flags, f"{_PROMETHEUS}/cmd/promtool"], work, CGO_ENABLED="0")


PROMTOOL = Tool("promtool", ("go",), (_PROMETHEUS_VERSION, "1"), _build_promtool)

TOOLS = (COLLECTOR, PROMTOOL)


def main() -> int:
    """Build them all; those that cannot be built are named."""
    failed = 0
    for tool in TOOLS:
        try:
            print(f"{tool.name}: {tool.make()}")
        except RuntimeError as e:
            print(f"{tool.name}: {e}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
