import io
import json
import logging
import re
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit._log_format import JsonFormatter, log_to
from otel_audit._telemetry_settings import LogsSettings


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What the log is written to; logging is as before at the end."""
    root, own = logging.getLogger(), logging.getLogger("otel_audit")
    before = root.handlers[:], root.level, own.level, threading.excepthook
    yield io.StringIO()
    root.handlers[:], threading.excepthook = before[0], before[3]
    root.setLevel(before[1])
    own.setLevel(before[2])
    logging.captureWarnings(capture=False)


def objects(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_has_one_object_a_line_with_its_fields(stream: io.StringIO) -> None:
    log_to(stream, LogsSettings("info", "json"))
    logger = logging.getLogger("otel_audit.sources")
    logger.warning(
        "source %s misses %d\nrecords", "ü\u2028", 3, extra={"source": "ü", "count": 3, "ratio": float("nan")}
    )
    logger.debug("not said")
    (line,) = objects(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(line.pop("ts")))
    assert line == {
        "level": "warn",
        "logger": "otel_audit.sources",
        "msg": "source ü\u2028 misses 3\nrecords",
        "source": "ü",
        "count": 3,
        "ratio": "nan",
    }
    assert stream.getvalue().isascii()


def test_an_exception_becomes_fields(stream: io.StringIO) -> None:
    log_to(stream, LogsSettings("info", "json"))
    try:
        int("lone \ud800 surrogate")
    except ValueError:
        logging.getLogger("otel_audit.log").exception("append failed")
    (line,) = objects(stream.getvalue())
    assert (line["level"], line["exception.type"]) == ("error", "ValueError")
    assert str(line["exception.message"]).endswith("'lone \\ud800 surrogate'")
    assert "test_log_format.py" in str(line["exception.stacktrace"])


def test_a_thread_that_fails_is_an_object_too(stream: io.StringIO) -> None:
    log_to(stream, LogsSettings("info", "json"))
    thread = threading.Thread(target=lambda: 1 / 0, name="busy")
    thread.start()
    thread.join()
    (line,) = objects(stream.getvalue())
    assert (line["msg"], line["failed_thread"], line["exception.type"]) == (
        "thread busy failed",
        "busy",
        "ZeroDivisionError",
    )


class Unwritable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(("args", "field"), [((1, 2), "x"), ((Unwritable(),), Unwritable()), (("\udfff",), b"\xff")])
def test_what_cannot_be_written_is_still_one_line_of_json(args: tuple[object, ...], field: object) -> None:
    record = logging.makeLogRecord({"msg": "value %s", "args": args, "thing": field, "level": "mine", "levelno": 30})
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert "\n" not in text
    assert line["level"] == "warn"
    assert line["field.level"] == "mine"
    assert str(line["msg"]).startswith("value")


@given(
    st.text(st.characters()), st.one_of(st.text(st.characters()), st.floats(), st.binary(), st.integers(), st.none())
)
def test_any_text_and_any_field_give_one_line_of_valid_json(message: str, field: object) -> None:
    record = logging.makeLogRecord(
        {"name": "otel_audit", "msg": "%s", "args": (message,), "field": field, "levelno": 20}
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert text.isascii()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads(text, parse_constant=refuse)
    json.dumps(line, ensure_ascii=False).encode()  # fails on lone surrogates
    assert line["msg"] == message.encode(errors="backslashreplace").decode()


@pytest.mark.parametrize(("level", "own", "others"), [("debug", 4, 2), ("info", 3, 2), ("warn", 2, 2), ("error", 1, 1)])
def test_the_level_is_the_least_that_is_written(stream: io.StringIO, level: str, own: int, others: int) -> None:
    log_to(stream, LogsSettings(level, "console"))  # type: ignore[arg-type]
    for name in ("otel_audit.log", "elsewhere"):
        for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(number, "said")
    lines = stream.getvalue().splitlines()
    assert sum("otel_audit.log" in line for line in lines) == own
    assert sum("elsewhere" in line for line in lines) == others
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [A-Z]+ otel_audit\.log: said", lines[0])
