"""Builds the wheel, installs it as a user would, and tries what each extra promises; `.ci/run` calls it.

Base: exactly what opentelemetry-sdk, -instrumentation and -exporter-otlp need comes with it, capture imports, the command
says what it lacks, and a service is audited, without opentelemetry-distro and with it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.capture_support import APPS, environment, free_port, grpc_sink, wait_until

ROOT = Path(__file__).parents[1]
LATE = ("pyarrow", "duckdb", "deltalake", "numpy", "msgspec", "rich", "click", "starlette", "uvicorn", "fastapi")
CHOSEN = ("opentelemetry-sdk", "opentelemetry-instrumentation", "opentelemetry-exporter-otlp")

# What the packages in argv need, with everything that those need, as far as their markers hold here.
CLOSURE = """
import json, sys
from importlib.metadata import distribution
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
found, waiting = set(), list(sys.argv[1:])
while waiting:
    name = waiting.pop().lower().replace("_", "-")
    if name in found:
        continue
    found.add(name)
    for line in distribution(name).requires or ():
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            waiting.append(wanted.name)
print(json.dumps(sorted(found)))
"""


def run(*command: str | Path, ok: bool = True, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd="/", env=env)
    if ok and done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def installed(python: Path) -> set[str]:
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    return {re.sub(r"[-_.]+", "-", p["name"]).lower() for p in listed}


def check_closure(python: Path) -> int:
    """The base install is otel-audit, the three packages, and exactly what they need; how many packages that is."""
    there = installed(python) - {"pip", "setuptools", "wheel"}
    needed = set(json.loads(run(python, "-c", CLOSURE, *CHOSEN))) | {"otel-audit"}
    if there != needed:
        sys.exit(f"the base install brings too much: {sorted(there - needed)}, or lacks: {sorted(needed - there)}")
    own = {
        re.split(r"[<>=!~;\[ ]", line)[0] for line in json.loads(run(python, "-c", REQUIRES)) if "extra ==" not in line
    }
    if own != set(CHOSEN):
        sys.exit(f"the wheel depends on {sorted(own)}")
    return len(there)


REQUIRES = "import json; from importlib.metadata import requires; print(json.dumps(requires('otel-audit')))"


def check_service(folder: Path, what: str) -> None:
    """A service in this environment is audited: all calls, once, named; `otel-audit check` agrees."""
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", "")])
    port = free_port()
    with grpc_sink() as sink, tempfile.TemporaryDirectory(prefix="otel-audit-spool-") as spool:
        env = environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_AUDIT_SPOOL_DIR=spool, PATH=path)
        env.pop("PYTHONPATH", None)
        command = [
            "opentelemetry-instrument",
            "uvicorn",
            "fastapi_app:app",
            "--port",
            str(port),
            "--log-level",
            "warning",
        ]
        said = subprocess.run(
            [folder / "bin" / "otel-audit", "check", "--url", "/things/1", "--", *command],
            cwd=APPS,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode or sink.spans or sink.about:
            sys.exit(f"{what}: otel-audit check says {said.stdout}{said.stderr}, and sent {sink.spans}{sink.about}")
        process = subprocess.Popen([folder / "bin" / command[0], *command[1:]], cwd=APPS, env=env)
        try:
            wait_until(lambda: _get(port, "/things/0") == 200)
            for n in range(1, 20):
                assert _get(port, f"/things/{n}") == 200
            sink.wait(20)
        finally:
            process.terminate()
            process.wait(60)
        sink.wait_about("otel_audit.stop")
        if len(sink.spans) != 20 or any(s.attributes.get("audit.client.ip") != "127.0.0.1" for s in sink.spans):
            sys.exit(f"{what}: {len(sink.spans)} records of 20 calls: {sink.spans[:1]}")
    print(f"a service {what} is audited")


def _get(port: int, path: str) -> int:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()


def check_flask_without_instrumentation(folder: Path) -> None:
    """The command names the package that is missing; this is the case for which a developer asks it."""
    app = folder / "shop.py"
    app.write_text("from flask import Flask\napp = Flask(__name__)\n@app.get('/x')\ndef x():\n    return 'x'\n")
    words = ["opentelemetry-instrument", "flask", "--app", str(app), "run", "--port", str(free_port())]
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", "")])
    env = environment(PATH=path)
    env.pop("PYTHONPATH", None)
    said = run(folder / "bin" / "otel-audit", "check", "--offline", "--", *words, ok=False, env=env)
    if "pip install opentelemetry-instrumentation-flask" not in said:
        sys.exit(f"flask without its instrumentation: otel-audit check says {said}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="otel-audit-wheel-") as name:
        folder = Path(name)
        venv.create(folder / "base", with_pip=True)
        python = folder / "base" / "bin" / "python"
        command = folder / "base" / "bin" / "otel-audit"
        pip = (python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
        run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25")
        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
        (wheel,) = folder.glob("otel_audit-*.whl")
        run(*pip, wheel)
        run(python, "-m", "pip", "check")
        heavy = installed(python) & set(LATE)
        if heavy:
            sys.exit(f"the base install brings {sorted(heavy)}")
        count = check_closure(python)
        run(python, "-c", "from otel_audit.capture import autoload, exporter; import otel_audit.record")
        said = run(command, "find", ok=False)
        if "pip install 'otel-audit[server]'" not in said:
            sys.exit(f"the command in the base install says: {said}")
        if "usage: otel-audit check" not in run(command, "check", "--help"):
            sys.exit("the base install has no `otel-audit check`")
        run(*pip, "fastapi", "uvicorn", "flask")
        check_service(folder / "base", "without opentelemetry-distro")
        check_flask_without_instrumentation(folder / "base")
        run(*pip, "opentelemetry-distro", "opentelemetry-instrumentation-fastapi")
        check_service(folder / "base", "with opentelemetry-distro")
        run(*pip, "click")
        if "pip install 'otel-audit[server]'" not in run(command, "serve", ok=False):
            sys.exit("with some of the server's packages there, the command does not say that others are missing")
        files = run(python, "-m", "pip", "show", "--files", "otel-audit")
        for needed in ("otel_audit/py.typed", "otel_audit/_examples/crm/main.py", "LICENSE"):
            if needed not in files:
                sys.exit(f"the wheel lacks {needed}")
        print(f"{wheel.name}: {count} packages in the base install, {wheel.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
