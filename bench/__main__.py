"""`make bench`: measure, and print the tables of docs/benchmarks.md.

    python -m bench [ingest] [decode] [reading] [startup] [overhead] [--quick]

Without names all of them run, a quarter of an hour or so. `--quick` makes everything small: it shows that the benchmarks work, its
figures mean nothing.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from typing import Any, Final

import psutil

Row = dict[str, Any]


def _ingest(quick: bool) -> list[Row]:
    from bench import ingest

    return ingest.rows(2.0 if quick else 15.0)


def _decode(quick: bool) -> list[Row]:
    from bench import decode

    return decode.run(10_000 if quick else 200_000)


def _reading(quick: bool) -> list[Row]:
    from bench import reading

    return reading.run(300_000 if quick else reading.RECORDS)


def _startup(quick: bool) -> list[Row]:
    from bench import startup

    return startup.run(10_000 if quick else startup.RECORDS, 1 if quick else 5)


def _overhead(quick: bool) -> list[Row]:
    from bench import overhead

    return overhead.run(2, 100) if quick else overhead.run()


PARTS: Final[dict[str, Callable[[bool], list[Row]]]] = {
    "ingest": _ingest,
    "decode": _decode,
    "reading": _reading,
    "startup": _startup,
    "overhead": _overhead,
}


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
    args = parser.parse_args()
    unknown = [p for p in args.parts if p not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    print(f"Machine: {_machine()}\n", flush=True)
    for name in args.parts or PARTS:
        print(f"## {name}\n", flush=True)
        _print(PARTS[name](args.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
