"""The memory of a whole server process under requests made to exhaust it."""

import gzip
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx

from tests.receiver_support import body, export_to, failure

PROTOBUF = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}


def peak_mib(pid: int) -> float:
    """Most memory the process ever had, as the kernel counts it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_bombs_do_not_fill_the_memory(tmp_path: Path) -> None:
    # At once: ten over HTTP that ask for more than the limit, ten over gRPC that stay just below it.
    bomb = gzip.compress(bytes(256 << 20), 9)
    size = 60 << 20
    length = bytes([*(size >> shift & 0x7F | 0x80 for shift in (0, 7, 14)), size >> 21])
    hollow = body() + b"\x9a\x06" + length + bytes(size)  # a good request with a large unknown field
    command = [sys.executable, "-m", "otel_audit", "serve", "--dir", str(tmp_path)]
    command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            words = next(line for line in process.stderr if line.startswith("listening")).split()
            addresses = dict(word.split("=", 1) for word in words[1:])
            before = peak_mib(process.pid)

            def over_http(_: int) -> object:
                url = f"http://{addresses['http']}/v1/traces"
                return httpx.post(url, content=bomb, headers=PROTOBUF, timeout=120, trust_env=False).status_code

            def over_grpc(_: int) -> object:
                with export_to(addresses["grpc"]) as export:
                    try:
                        return export(hollow, compression=grpc.Compression.Gzip, timeout=120)
                    except grpc.RpcError as e:
                        return failure(e)[0]

            with ThreadPoolExecutor(20) as pool:
                answers = {*pool.map(over_http, range(10)), *pool.map(over_grpc, range(10))}
            assert answers <= {413, 503, b"", grpc.StatusCode.UNAVAILABLE}
            assert peak_mib(process.pid) - before < 560, (
                "256 MiB of bodies, two of 60 MiB unpacked twice over, one parsed, and what the C library keeps"
            )
        finally:
            process.terminate()
            process.wait(60)
