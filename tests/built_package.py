"""Builds the wheel, installs it as a user would, and tries what each extra promises; `.ci/run` calls it.

Base: only the OpenTelemetry packages come with it, capture imports, and the command says what it lacks.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
LATE = ("pyarrow", "duckdb", "deltalake", "numpy", "msgspec", "rich", "click", "starlette", "uvicorn", "fastapi")


def run(*command: str | Path, ok: bool = True) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd="/")
    if ok and done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="otel-audit-wheel-") as name:
        folder = Path(name)
        venv.create(folder / "base", with_pip=True)
        python = folder / "base" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25")
        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
        (wheel,) = folder.glob("otel_audit-*.whl")
        run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
        run(python, "-m", "pip", "check")
        installed = {p["name"].lower() for p in json.loads(run(python, "-m", "pip", "list", "--format=json"))}
        heavy = installed & set(LATE)
        if heavy:
            sys.exit(f"the base install brings {sorted(heavy)}")
        run(python, "-c", "from otel_audit.capture import autoload, exporter; import otel_audit.record")
        said = run(folder / "base" / "bin" / "otel-audit", "find", ok=False)
        if "pip install 'otel-audit[server]'" not in said:
            sys.exit(f"the command in the base install says: {said}")
        run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", "click")
        if "pip install 'otel-audit[server]'" not in run(folder / "base" / "bin" / "otel-audit", "serve", ok=False):
            sys.exit("with some of the server's packages there, the command does not say that others are missing")
        files = run(python, "-m", "pip", "show", "--files", "otel-audit")
        for needed in ("otel_audit/py.typed", "otel_audit/_examples/crm/main.py", "LICENSE"):
            if needed not in files:
                sys.exit(f"the wheel lacks {needed}")
        print(f"{wheel.name}: {len(installed)} packages in the base install, {wheel.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
