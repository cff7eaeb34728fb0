"""Readers of metrics and attributes of the service, as a configuration file has them."""

from pathlib import Path

import pytest
import yaml

from otel_audit import config
from otel_audit.config import load
from otel_audit.errors import ConfigError
from otel_audit.telemetry import LogsSettings, OtlpReader, PrometheusReader, Reader


def telemetry(folder: Path, text: str) -> Path:
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump({"service": {"telemetry": yaml.safe_load(text)}}))
    return path


def readers(folder: Path, text: str) -> tuple[Reader, ...]:
    return load(telemetry(folder, f"metrics: {{readers: [{text}]}}")).telemetry.readers


@pytest.mark.parametrize(
    ("text", "reader"),
    [
        ("{pull: {exporter: {prometheus: {host: localhost, port: 8888}}}}", PrometheusReader()),
        ("{pull: {exporter: {prometheus: }}}", PrometheusReader()),
        ("{pull: {exporter: {prometheus: {port: 0}}}}", PrometheusReader(port=0)),
        ("{periodic: {exporter: {otlp: {endpoint: 'http://a:4317'}}}}", OtlpReader("http://a:4317")),
        (
            "{periodic: {interval: 1000, exporter: {otlp: {endpoint: 'a:4317', insecure: true, headers: [{name: k, value: v}]}}}}",
            OtlpReader("a:4317", interval_ms=1000, headers=(("k", "v"),), insecure=True),
        ),
        (
            """{periodic: {exporter: {otlp: {protocol: http/protobuf, endpoint: 'https://a/x', headers: {k: v},
            certificate: /ca.pem, client_key: /k.pem, client_certificate: /c.pem, temporality_preference: cumulative}}}}""",
            OtlpReader(
                "https://a/x",
                "http/protobuf",
                headers=(("k", "v"),),
                certificate="/ca.pem",
                client_key="/k.pem",
                client_certificate="/c.pem",
            ),
        ),
    ],
)
def test_readers_have_the_shape_of_a_collector(tmp_path: Path, text: str, reader: Reader) -> None:
    assert readers(tmp_path, text) == (reader,)


def test_an_endpoint_without_a_scheme_is_spoken_to_with_tls_unless_it_is_said_to_be_insecure() -> None:
    assert OtlpReader("a:4317").url == "https://a:4317"
    assert OtlpReader("a:4317", insecure=True).url == "http://a:4317"
    assert OtlpReader("https://a:4317", insecure=True).url == "https://a:4317"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{push: {}}", "'push': there is no such setting; known here: pull, periodic"),
        ("{pul: {}}", "did you mean pull?"),
        ("{}", "needs exactly one of pull, periodic"),
        ("{pull: {}}", "needs an exporter: prometheus"),
        ("{pull: {exporter: {otlp: {}}}}", "'otlp': there is no such setting; known here: prometheus"),
        ("{pull: {exporter: {prometheus: {port: 70000}}}}", "70000: needs a port, 0 to 65535"),
        ("{pull: {exporter: {prometheus: {without_units: true}}}}", "known here: host, port"),
        ("{periodic: {exporter: {otlp: {protocol: grpc}}}}", "needs an endpoint"),
        ("{periodic: {exporter: {otlp: {endpoint: 'ftp://a'}}}}", "needs a URL such as"),
        ("{periodic: {exporter: {otlp: {endpoint: 'a:99999'}}}}", "no port between"),
        ("{periodic: {exporter: {otlp: {endpoint: 'http://[a'}}}}", "is no URL"),
        ("{periodic: {exporter: {otlp: {endpoint: a, protocol: http/json}}}}", "needs one of grpc, http/protobuf"),
        ("{periodic: {interval: 60s, exporter: {otlp: {endpoint: a}}}}", "'60s': needs milliseconds"),
        ("{periodic: {exporter: {otlp: {endpoint: a, temporality_preference: delta}}}}", "needs one of cumulative"),
        ("{periodic: {exporter: {otlp: {endpoint: a, headers: [{name: k}]}}}}", "needs a name and a value"),
        ("5", "needs keys and values below it"),
    ],
)
def test_a_fault_in_a_reader_says_where_and_what_is_known(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        readers(tmp_path, text)
    assert "service.telemetry.metrics.readers" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "headers",
    [
        "{authorization: {oh: hunter2}}",
        "[hunter2]",
        "'authorization: hunter2'",
        "[{name: a, value: [hunter2]}]",
        "[{name: a, secret: hunter2}]",
        "[{hunter2: a}]",
    ],
)
def test_the_value_of_a_header_is_never_shown(tmp_path: Path, headers: str) -> None:
    with pytest.raises(ConfigError) as error:
        readers(tmp_path, f"{{periodic: {{exporter: {{otlp: {{endpoint: a, headers: {headers}}}}}}}}}")
    assert "hunter2" not in str(error.value)
    assert "[redacted]" in str(error.value)
    good = telemetry(
        tmp_path, "metrics: {readers: [{periodic: {exporter: {otlp: {endpoint: a, headers: {k: hunter2}}}}}]}"
    )
    shown = yaml.safe_dump(config.tree(load(good)))
    assert "hunter2" not in shown
    assert "[redacted]" in shown


@pytest.mark.parametrize("scheme", ["https://", ""])
def test_the_password_of_an_endpoint_is_never_shown(tmp_path: Path, scheme: str) -> None:
    reader = f"{{periodic: {{exporter: {{otlp: {{endpoint: '{scheme}u:hunter2@a:4317/x'}}}}}}}}"
    path = telemetry(tmp_path, f"metrics: {{readers: [{reader}]}}")
    shown = yaml.safe_dump(config.tree(load(path)))
    assert f"endpoint: {scheme}a:4317/x" in shown
    assert "hunter2" not in shown
    with pytest.raises(ConfigError, match="no port between") as error:
        readers(tmp_path, reader.replace("4317", "99999"))
    assert "hunter2" not in str(error.value)


def test_a_fault_has_the_line_of_what_is_wrong_within(tmp_path: Path) -> None:
    path = tmp_path / "audit.yaml"
    path.write_text(
        "service:\n  telemetry:\n    metrics:\n      readers:\n      - pull:\n          exporter:\n            prometheus:\n"
        "              port: many\n"
    )
    (problem,) = config.problems(path)
    assert "audit.yaml:8" in str(problem)


@pytest.mark.parametrize(
    "text",
    [
        "resource: {b: x, a: null}",
        "resource: {attributes: [{name: b, value: x}, {name: a, value: null}]}",
    ],
)
def test_attributes_of_the_service_in_either_shape(tmp_path: Path, text: str) -> None:
    assert load(telemetry(tmp_path, text)).telemetry.resource == (("a", None), ("b", "x"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resource: {a: 5}", "5: an attribute needs text as its value"),
        ("resource: [a]", "needs attributes and their values"),
        ("resource: {attributes: [{name: a}]}", "needs a name and a value"),
        ("logs: {level: verbose}", "needs one of debug, info, warn, error"),
        ("logs: {encoding: logfmt}", "needs one of console, json"),
        ("traces: {}", "no such setting"),
    ],
)
def test_a_fault_in_the_rest_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"service\.telemetry") as error:
        load(telemetry(tmp_path, text))
    assert said in str(error.value)


def test_levels_are_taken_in_either_case_as_a_collector_does(tmp_path: Path) -> None:
    assert load(telemetry(tmp_path, "logs: {level: WARN}")).telemetry.logs == LogsSettings("warn")


def test_the_example_of_the_documentation_is_a_good_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_TOKEN", "secret")
    text = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    path = tmp_path / "audit.yaml"
    path.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    told = load(path).telemetry
    assert [type(r) for r in told.readers] == [PrometheusReader, OtlpReader]
    assert told.logs.encoding == "json"
