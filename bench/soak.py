"""A long run through a Collector at one rate: what is larger at the end than at the start, and whether every call arrived.

`python -m bench soak --minutes 20 --rate 20000`: half of what `pipeline` holds says more than all of it.
"""

from dataclasses import asdict

from bench.pipeline import Row, Sample, Watch, counts, row, running

_COLUMNS = {
    "seconds": "second",
    "collector_mib": "Collector MiB",
    "service_mib": "otel-audit MiB",
    "collector_fds": "Collector files",
    "service_fds": "otel-audit files",
    "queue_mib": "in the queue MiB",
    "queue_disk_mib": "queue's file MiB",
    "log_disk_mib": "log MiB",
}


def rows(minutes: float, rate: float, directory: str | None = None) -> list[Row]:
    """Run it; prints how large everything was every minute."""
    with running(directory=directory) as line:
        line.ask(rate, 5)  # what is made once is made
        before = line.cpu_s()
        with Watch(line, min(60.0, minutes * 10)) as watch:
            answer = line.ask(rate, minutes * 60)
        cpu_s = {"generator": answer["cpu_s"], **{name: after - before[name] for name, after in line.cpu_s().items()}}
        first, last = watch.samples[0], watch.samples[-1]
        _print(watch.samples)
        note = f"{minutes:g} minutes" + ("" if answer["held"] else "; **NOT held**")
        made = [row("rate", answer["rate"], "records/s", note, samples=[asdict(s) for s in watch.samples])]
        made += [
            row(what, getattr(last, key), unit, f"at the start {getattr(first, key):,.0f}")
            for what, key, unit in (
                ("memory of Collector", "collector_mib", "MiB"),
                ("memory of otel-audit", "service_mib", "MiB"),
                ("open files of Collector", "collector_fds", ""),
                ("open files of otel-audit", "service_fds", ""),
                ("the queue's file", "queue_disk_mib", "MiB"),
                ("the log", "log_disk_mib", "MiB"),
            )
        ]
        made += [row(f"CPU of {n}", 1e6 * s / answer["calls"], "µs/record") for n, s in cpu_s.items()]
        p99 = row("acknowledged by the Collector, p99", answer["p99_ms"], "ms", f"p50 {answer['p50_ms']:.1f} ms")
        return [*made, p99, counts(line)]


def _print(samples: list[Sample]) -> None:
    print(f"| {' | '.join(_COLUMNS.values())} |\n|{'--:|' * len(_COLUMNS)}")
    for sample in samples:
        print(f"| {' | '.join(f'{getattr(sample, key):,.0f}' for key in _COLUMNS)} |")
    print(flush=True)
