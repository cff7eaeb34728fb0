"""`make bench`: measure, and print the tables of docs/benchmarks.md.

    python -m bench [ingest] [decode] [reading] [startup] [overhead] [pipeline] [--quick] [--json FILE]
    python -m bench pipeline --seconds 300
    python -m bench soak --minutes 20 --rate 20000

Without names all of them run but `soak`, half an hour or so. `--quick` makes everything small: it shows that the benchmarks work, its
figures mean nothing. `pipeline` and `soak` need the Collector of `make test-tools`; they build it where there is Go.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil

Row = dict[str, Any]


def _ingest(args: argparse.Namespace) -> list[Row]:
    from bench import ingest

    return ingest.rows(2.0 if args.quick else 15.0)


def _decode(args: argparse.Namespace) -> list[Row]:
    from bench import decode

    return decode.run(10_000 if args.quick else 200_000)


def _reading(args: argparse.Namespace) -> list[Row]:
    from bench import reading

    return reading.run(300_000 if args.quick else reading.RECORDS)


def _startup(args: argparse.Namespace) -> list[Row]:
    from bench import startup

    return startup.run(10_000 if args.quick else startup.RECORDS, 1 if args.quick else 5)


def _overhead(args: argparse.Namespace) -> list[Row]:
    from bench import overhead

    return overhead.run(2, 100) if args.quick else overhead.run()


def _pipeline(args: argparse.Namespace) -> list[Row]:
    from bench import pipeline

    return pipeline.rows(3.0, 1.0, args.dir) if args.quick else pipeline.rows(args.seconds, directory=args.dir)


def _soak(args: argparse.Namespace) -> list[Row]:
    from bench import soak

    return soak.rows(0.1, 2000.0, args.dir) if args.quick else soak.rows(args.minutes, args.rate, args.dir)


PARTS: Final[dict[str, Callable[[argparse.Namespace], list[Row]]]] = {
    "ingest": _ingest,
    "decode": _decode,
    "reading": _reading,
    "startup": _startup,
    "overhead": _overhead,
    "pipeline": _pipeline,
    "soak": _soak,
}
ONLY_BY_NAME: Final = ("soak",)
"""It takes as long as it is told to."""


def _machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        model = next(
            (line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "unknown processor"
        )
    memory = psutil.virtual_memory().total / 2**30
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, {python}; load before: {load}"
    )


def _print(rows: list[Row]) -> None:
    print("| what | value | unit | note |")
    print("|---|--:|---|---|")
    for row in rows:
        value = row["value"]
        digits = 0 if value >= 1000 else 1 if value >= 10 else 2
        print(f"| {row['name']} | {value:,.{digits}f} | {row['unit']} | {row['note']} |")
    print(flush=True)


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(PARTS)}; all without a name")
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    parser.add_argument("--seconds", type=float, default=300.0, help="pipeline: how long the rate is held")
    parser.add_argument("--minutes", type=float, default=20.0, help="soak: how long")
    parser.add_argument("--rate", type=float, default=20_000.0, help="soak: records a second")
    parser.add_argument("--dir", help="pipeline, soak: where to write; the temporary directory without it")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    args = parser.parse_args()
    unknown = [p for p in args.parts if p not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    machine, measured = _machine(), {}
    print(f"Machine: {machine}\n", flush=True)
    failed = 0
    for name in args.parts or [n for n in PARTS if args.quick or n not in ONLY_BY_NAME]:
        print(f"## {name}\n", flush=True)
        try:
            measured[name] = PARTS[name](args)
        except RuntimeError as e:  # there is no Collector, and nothing to build one with
            print(f"not measured: {e}\n", flush=True)
            failed |= name in args.parts
            continue
        _print(measured[name])
        if args.json:
            args.json.write_text(json.dumps({"machine": machine, "parts": measured}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
