import re
from pathlib import Path

import pytest
import yaml

from otel_audit import config
from otel_audit.config import ServerSettings, load
from otel_audit.errors import ConfigError
from otel_audit.forwarder import OtlpLogsSettings
from otel_audit.receiver import TlsSettings
from otel_audit.senders import Sender
from otel_audit.telemetry import LogsSettings, OtlpReader, PrometheusReader

WHOLE = """
receivers:
  otlp:
    senders:
      - name: gateway
        token_sha256: [6816dbaac4aacdffa60ebd5a677968eb33ade28dea1d2dc892125d1ad66ee787]
        services: [crm, billing-*]
        rate_records_per_s: 5000
        max_request_mib: 8
    senders_file: /etc/otel-audit/senders.yaml
    unauthenticated: refuse
    allow_insecure: true
    retry_after: 500ms
    ack_timeout: 1m30s
    max_in_flight_mib: 128
    protocols:
      grpc:
        endpoint: 127.0.0.1:14317
        max_recv_msg_size_mib: 16
        read_timeout: 5s
        workers: 8
        max_connections: 20
        tls:
          cert_file: /etc/tls/tls.crt
          key_file: /etc/tls/tls.key
          client_ca_file: /etc/tls/ca.crt
          min_version: 1.2
          reload_interval: 1m
      http:
        endpoint: "[::1]:14318"
        max_request_body_size: 1000
        read_timeout: 6s
        read_header_timeout: 7s
        idle_timeout: 1m
        max_connections: 10
        tls:
          cert_file: /etc/tls/web.crt
          key_file: /etc/tls/web.key
          client_ca_file: /etc/tls/web-ca.crt
          min_version: "1.3"
          reload_interval: 5s
log:
  directory: /var/lib/audit
  name: production
  segment_rows: 1000
  segment_age: 5m
  dedupe_window: 1h
  dedupe_ids_max: 20000000
  queue_records: 5000
  disk_reserve_mib: 500
  disk_ready_mib: 2000
  late_after: 2m
exporters:
  otlp_logs:
    endpoint: https://logs.example.com:4318
    protocol: http/protobuf
    headers: {Authorization: Bearer abc}
    timeout: 5s
    compression: none
    tls:
      ca_file: /dev/null
      cert_file: /dev/null
      key_file: /dev/null
      insecure_skip_verify: true
    batch_records: 500
    from: now
exclude_routes: [/healthz, /internal/*]
service:
  shutdown_timeout: 20s
  telemetry:
    logs: {level: warn, encoding: json}
    metrics:
      readers:
        - pull: {exporter: {prometheus: {host: 127.0.0.1, port: 18888}}}
        - periodic:
            interval: 5000
            timeout: 4000
            exporter:
              otlp:
                protocol: http/protobuf
                endpoint: http://localhost:14318
                timeout: 3000
                compression: gzip
    resource: {service.name: audit-eu, service.instance.id: null}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "audit.yaml"
    path.write_text(text)
    return str(path)


def fault(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(write(folder, text))
    return str(error.value)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_AUDIT_DIR", raising=False)


def test_defaults_are_the_otlp_ports_on_localhost() -> None:
    settings = load()
    assert settings == ServerSettings()
    assert settings.directory == "./audit-log"
    assert settings.receiver.grpc
    assert settings.receiver.http
    assert (settings.receiver.grpc.endpoint, settings.receiver.http.endpoint) == ("localhost:4317", "localhost:4318")


def test_every_key_of_a_file_arrives(tmp_path: Path) -> None:
    settings = load(write(tmp_path, WHOLE))
    grpc, http, intake = settings.receiver.grpc, settings.receiver.http, settings.receiver.intake
    assert grpc
    assert http
    assert (grpc.endpoint, grpc.max_body_bytes, grpc.receive_timeout_s, grpc.workers, grpc.connections_max) == (
        "127.0.0.1:14317",
        16 << 20,
        5,
        8,
        20,
    )
    assert grpc.tls == TlsSettings("/etc/tls/tls.crt", "/etc/tls/tls.key", "/etc/tls/ca.crt", "1.2", 60)
    assert http.tls == TlsSettings("/etc/tls/web.crt", "/etc/tls/web.key", "/etc/tls/web-ca.crt", "1.3", 5)
    access = settings.receiver.access
    digest = "6816dbaac4aacdffa60ebd5a677968eb33ade28dea1d2dc892125d1ad66ee787"
    assert access.senders == (
        Sender(
            "gateway",
            (digest,),
            services=("crm", "billing-*"),
            rate_records_per_s=5000,
            max_request_bytes=8 << 20,
        ),
    )
    assert (access.senders_file, access.unauthenticated) == ("/etc/otel-audit/senders.yaml", "refuse")
    assert access.allow_insecure
    assert (http.endpoint, http.max_body_bytes, http.connections_max) == ("[::1]:14318", 1000, 10)
    assert (http.receive_timeout_s, http.header_timeout_s, http.idle_timeout_s) == (6, 7, 60)
    assert (intake.retry_after_s, intake.ack_timeout_s, intake.max_in_flight_bytes) == (0.5, 90, 128 << 20)
    assert (settings.directory, settings.log.name, settings.log.segment_rows) == ("/var/lib/audit", "production", 1000)
    assert (settings.log.segment_age_s, settings.log.dedupe_window_s) == (300, 3600)
    log = settings.log
    assert (log.dedupe_ids_max, log.queue_records, log.disk_reserve_bytes) == (20_000_000, 5_000, 500 << 20)
    assert (log.late_s, log.disk_ready_bytes) == (120, 2000 << 20)
    assert settings.decode.exclude_routes == ("/healthz", "/internal/*")
    assert settings.otlp_logs == OtlpLogsSettings(
        endpoint="https://logs.example.com:4318",
        protocol="http/protobuf",
        headers=(("Authorization", "Bearer abc"),),
        timeout_s=5,
        compression="none",
        ca_file="/dev/null",
        cert_file="/dev/null",
        key_file="/dev/null",
        insecure_skip_verify=True,
        batch_records=500,
        start="now",
    )
    told = settings.telemetry
    assert (settings.shutdown_timeout_s, told.logs) == (20, LogsSettings("warn", "json"))
    assert told.resource == (("service.instance.id", None), ("service.name", "audit-eu"))
    push = OtlpReader("http://localhost:14318", "http/protobuf", 5000, 4000, 3000, compression="gzip")
    assert told.readers == (PrometheusReader("127.0.0.1", 18888), push)


def flat(tree: object, above: str = "") -> set[str]:
    if not isinstance(tree, dict) or above in config.setting_keys():  # headers are a value
        return {above}
    return {key for name, below in tree.items() for key in flat(below, f"{above}.{name}".lstrip("."))}


def test_the_file_above_has_every_setting() -> None:
    assert flat(yaml.safe_load(WHOLE)) == set(config.setting_keys())


def test_every_setting_is_documented_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \|", text, re.MULTILINE))
    assert rows.keys() == set(config.setting_keys())
    assert rows["log.segment_rows"] == f"{ServerSettings().log.segment_rows:,}"
    assert rows["log.dedupe_ids_max"] == f"{ServerSettings().log.dedupe_ids_max:,}"
    assert rows["log.queue_records"] == f"{ServerSettings().log.queue_records:,}"


def test_flags_go_over_the_file_the_file_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", "from-environment")
    assert load().directory == "from-environment"
    file = write(tmp_path, WHOLE)
    assert load(file).directory == "/var/lib/audit"
    settings = load(file, {"dir": "from-flag", "grpc": "127.0.0.1:0", "http": None})
    assert settings.directory == "from-flag"
    assert settings.receiver.grpc
    assert settings.receiver.http
    assert settings.receiver.grpc.endpoint == "127.0.0.1:0"
    assert settings.receiver.grpc.workers == 8, "other settings of the file stay"
    assert settings.receiver.http.endpoint == "[::1]:14318"


def test_keys_of_the_file_work_as_overrides_too() -> None:
    assert load(None, {"log.segment_age": "5s"}).log.segment_age_s == 5
    with pytest.raises(ConfigError, match=r"command line, log\.segment_agge.*did you mean segment_age"):
        load(None, {"log.segment_agge": "5s"})


@pytest.mark.parametrize("text", ["", "receivers:\n", "receivers: {otlp: {protocols: }}\n", "log: {name: a}\n"])
def test_both_protocols_are_on_unless_the_file_lists_some(tmp_path: Path, text: str) -> None:
    settings = load(write(tmp_path, text))
    assert settings.receiver.grpc
    assert settings.receiver.http


@pytest.mark.parametrize("text", ["grpc:", "grpc: {workers: 4}", "grpc: {}"])
def test_a_protocol_that_is_not_listed_is_off_as_in_a_collector(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, f"receivers: {{otlp: {{protocols: {{{text}}}}}}}")
    assert load(file).receiver.http is None
    assert load(file).receiver.grpc is not None
    again = load(file, {"http": "127.0.0.1:0"}).receiver
    assert again.http is not None, "a flag switches it on again"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("reciever: {}", ["audit.yaml:1, reciever", "no such setting", "did you mean receivers?"]),
        ("log: {segment_row: 5}", ["audit.yaml:1, log.segment_row", "did you mean segment_rows?"]),
        ("segment_rows: 5", ["audit.yaml:1, segment_rows", "did you mean log.segment_rows?"]),
        ("log: {zzz: 5}", ["log.zzz", "known here: dedupe_ids_max, dedupe_window, directory"]),
        (
            "receivers: {otlp: {protocols: {grpc: {cors: {}}}}}",
            ["receivers.otlp.protocols.grpc.cors", "no such setting"],
        ),
        ("log: {segment_rows: many}", ["log.segment_rows: 'many'", "needs a whole number above zero"]),
        ("log: {segment_rows: true}", ["log.segment_rows: True", "whole number"]),
        ("log: {segment_rows: 0}", ["whole number above zero"]),
        ("log: {segment_age: 60}", ["log.segment_age: 60", "duration with its unit"]),
        ("log: {segment_age: 0s}", ["above zero"]),
        ("log: {name: 5}", ["log.name: 5", "needs text"]),
        ("receivers: {otlp: {senders: []}}", ["receivers.otlp.senders", "at least one sender"]),
        ("receivers: {otlp: {senders: [{name: a}]}}", ["nothing says how it proves who it is", "otel-audit token"]),
        ("receivers: {otlp: {senders: [{certificate: a}]}}", ["needs a name"]),
        ("receivers: {otlp: {senders: [5]}}", ["needs the keys of a sender"]),
        (
            "receivers: {otlp: {senders:\n [{name: a, token: b}]}}",
            ["audit.yaml:2", "never written down", "token_sha256"],
        ),
        ("receivers: {otlp: {senders: [{name: a, certificate: []}]}}", ["needs at least one text"]),
        (
            "receivers: {otlp: {senders: [{name: a, certificate: b}, {name: a, certificate: c}]}}",
            ["'a'", "two senders have this name"],
        ),
        ("receivers: {otlp: {protocols: {http: {tls: {min_version: 1.1}}}}}", ["1.1", "needs one of 1.2, 1.3"]),
        ("receivers: {otlp: {unauthenticated: drop}}", ["'drop'", "needs one of retry, refuse"]),
        ("exclude_routes: /healthz", ["exclude_routes", "needs a list"]),
        ("exclude_routes: [1]", ["exclude_routes", "needs text"]),
        ("log: 5", ["audit.yaml:1, log", "needs keys and values"]),
        ("- a\n- b", ["audit.yaml:1, as a whole", "needs keys and values"]),
        ("a: [", ["audit.yaml", "not YAML"]),
        ("receivers: {otlp: {protocols: {grpc: {endpoint: '4317'}}}}", ["grpc.endpoint: '4317'", "write it as"]),
        ("receivers: {otlp: {protocols: {http: {endpoint: '::1:4318'}}}}", ["needs brackets"]),
        ("receivers: {otlp: {protocols: {http: {endpoint: ':4318'}}}}", ["it has no host", "0.0.0.0"]),
        ("receivers: {otlp: {protocols: {http: {endpoint: 'a:70000'}}}}", ["no port between 0 and 65535"]),
    ],
)
def test_a_fault_names_file_key_and_what_to_do(tmp_path: Path, text: str, said: list[str]) -> None:
    message = fault(tmp_path, text)
    for part in said:
        assert part in message


def test_a_file_that_is_not_there_is_a_fault_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load(tmp_path / "binary.yaml")


# --- environment, lines, everything at once -----------------------------------------------------------------------------
def test_a_variable_stands_for_its_value_and_keeps_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWS", "1000")
    monkeypatch.setenv("NUMERIC_NAME", "0123")
    monkeypatch.setenv("WHERE", "/data")
    settings = load(
        write(
            tmp_path,
            "log: {segment_rows: '${env:ROWS}', name: '${env:NUMERIC_NAME}', directory: '${WHERE}/$$x/${env:NONE:-y}'}",
        )
    )
    assert settings.log.segment_rows == 1000
    assert settings.log.name == "0123"
    assert settings.directory == "/data/$x/y"


def test_a_variable_that_is_not_set_is_a_fault_that_says_how_to_give_a_default(tmp_path: Path) -> None:
    said = fault(tmp_path, "log:\n  name: ${env:OTEL_AUDIT_NOT_SET}\n")
    assert "audit.yaml:2" in said
    assert "OTEL_AUDIT_NOT_SET is not set" in said
    assert "${env:OTEL_AUDIT_NOT_SET:-default}" in said


def test_what_may_be_a_token_is_not_shown(tmp_path: Path) -> None:
    secret = "oat_not-a-digest-but-the-token-itself"
    text = f"receivers: {{otlp: {{senders: [{{name: a, token_sha256: {secret}}}]}}}}"
    said = fault(tmp_path, text)
    assert "needs the SHA-256 of a token" in said
    assert "otel-audit token" in said
    assert secret not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{{senders_file: s.yaml, senders: [{{name: a, token_sha256: {'0a' * 32}}}]}}",
            ["receivers.otlp.senders", "there is senders_file as well"],
        ),
        (
            "{senders: [{name: a, certificate: b}], protocols: {http: {tls: {cert_file: a, key_file: b}}}}",
            ["no protocol asks for one", "client_ca_file"],
        ),
        ("{protocols: {grpc: {tls: {cert_file: a}}}}", ["grpc.tls", "needs cert_file and key_file"]),
        ("{protocols: {grpc: {tls: {cert_file: a, key_file: b, min_version: '1.3'}}}}", ["gRPC for Python"]),
        ("{protocols: {grpc: {endpoint: '0.0.0.0:4317'}}}", ["without encryption", "allow_insecure: true"]),
        (
            "{senders_file: s.yaml, protocols: {http: {endpoint: '0.0.0.0:4318'}}}",
            ["without encryption", "http.tls.cert_file"],
        ),
        (
            "{protocols: {http: {endpoint: '[::]:4318', tls: {cert_file: a, key_file: b}}}}",
            ["any machine could write into the log", "senders", "client_ca_file"],
        ),
    ],
)
def test_settings_that_do_not_go_together_are_found_without_starting(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    (found,) = config.problems(write(tmp_path, f"receivers: {{otlp: {text}}}"))
    for part in said:
        assert part in str(found)


def test_a_file_of_senders_is_looked_at_where_it_is_there(tmp_path: Path) -> None:
    senders = tmp_path / "senders.yaml"
    path = write(tmp_path, f"receivers: {{otlp: {{senders_file: {senders}}}}}")
    assert config.problems(path) == []
    senders.write_text("- {name: a}")
    (found,) = config.problems(path)
    assert "nothing says how it proves who it is" in str(found)
    senders.write_text("- {name: a, certificate: b}")
    (found,) = config.problems(path)
    assert "no protocol asks for one" in str(found)
    tls = "{cert_file: a, key_file: b, client_ca_file: c}"
    path = write(tmp_path, f"receivers: {{otlp: {{senders_file: {senders}, protocols: {{grpc: {{tls: {tls}}}}}}}}}")
    assert config.problems(path) == []


@pytest.mark.parametrize(
    "text",
    [
        "{allow_insecure: true, protocols: {grpc: {endpoint: '0.0.0.0:4317'}}}",
        "{protocols: {grpc: {endpoint: '0.0.0.0:4317', tls: {cert_file: a, key_file: b, client_ca_file: c}}}}",
        "{senders_file: s, protocols: {http: {endpoint: '0.0.0.0:4318', tls: {cert_file: a, key_file: b}}}}",
        "{senders_file: s, protocols: {http: {endpoint: 'localhost:4318'}}}",
        "{senders: [{name: a, certificate: b}], protocols: {grpc: {tls: {cert_file: a, key_file: b, client_ca_file: c}}}}",
    ],
)
def test_settings_that_go_together_are_good(tmp_path: Path, text: str) -> None:
    assert config.problems(write(tmp_path, f"receivers: {{otlp: {text}}}")) == []


def test_a_key_given_twice_is_a_fault(tmp_path: Path) -> None:
    assert "the key log is there twice" in fault(tmp_path, "log: {name: a}\nlog: {name: b}\n")


def test_all_faults_are_found_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "log:\n  nam: a\n  segment_age: 5\nzzz: 1\n")
    found = [str(p) for p in config.problems(path)]
    assert [f"audit.yaml:{line}" in text for line, text in zip((2, 3, 4), found, strict=True)] == [True] * 3


def test_variables_that_are_not_set_hide_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, "log:\n  name: ${env:NOT_SET_A}\n  segment_rows: ${env:NOT_SET_B}\n  nam: a\n")
    found = [str(p) for p in config.problems(path)]
    assert [re.findall(r"NOT_SET_\w|nam\b", text)[:1] for text in found] == [["NOT_SET_A"], ["NOT_SET_B"], ["nam"]]


def test_what_is_printed_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    settings = load(write(tmp_path, WHOLE))
    printed = config.tree(settings)
    printed["exporters"]["otlp_logs"]["headers"] = {"Authorization": "Bearer abc"}  # a secret, which is not printed
    again = load(write(tmp_path, yaml.safe_dump(printed)))
    assert again == settings
    assert load(write(tmp_path, yaml.safe_dump(config.tree(ServerSettings())))) == ServerSettings()


def test_a_tree_has_every_key_that_has_a_value() -> None:
    decided_at_start = {"log.disk_reserve_mib", "log.disk_ready_mib"}
    decided_at_start |= {"receivers.otlp.senders", "receivers.otlp.senders_file"}
    decided_at_start |= {key for key in config.setting_keys() if ".protocols." in key and ".tls." in key}
    off = {key for key in config.setting_keys() if key.startswith("exporters.otlp_logs.")}
    assert flat(config.tree(ServerSettings())) == set(config.setting_keys()) - decided_at_start - off


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("{from: now}", "it needs an endpoint.*set exporters.otlp_logs.endpoint"),
        ("{endpoint: 'localhost:4317'}", "not the address of an OTLP endpoint"),
        ("{endpoint: 'http://h:1', tls: {ca_file: /dev/null}}", "tls settings, but no TLS"),
        ("{endpoint: 'https://h:1', tls: {cert_file: /dev/null}}", "go together"),
        ("{endpoint: 'https://h:1', tls: {insecure_skip_verify: true}}", "not possible with grpc"),
        ("{endpoint: 'https://h:1', tls: {ca_file: /no/such}}", "No such file"),
        ("{endpoint: 'http://h:1', headers: {'a b': c}}", "needs header names"),
        ("{endpoint: 'http://h:1', protocol: http}", "needs one of grpc, http/protobuf"),
    ],
)
def test_an_exporter_that_cannot_work_is_found_before_the_service_starts(tmp_path: Path, said: str, why: str) -> None:
    assert re.search(why, fault(tmp_path, f"exporters: {{otlp_logs: {said}}}"))


def test_headers_are_not_printed(tmp_path: Path) -> None:
    printed = config.tree(load(write(tmp_path, WHOLE)))
    assert printed["exporters"]["otlp_logs"]["headers"] == "[redacted]"


@pytest.mark.parametrize("endpoint", ["https://u:hunter2@a:4318", "https://u:hunter2@a"])
def test_the_password_of_an_endpoint_is_not_printed(tmp_path: Path, endpoint: str) -> None:
    settings = load(write(tmp_path, f"exporters: {{otlp_logs: {{endpoint: '{endpoint}'}}}}"))
    assert config.tree(settings)["exporters"]["otlp_logs"]["endpoint"] == endpoint.replace("u:hunter2@", "")


@pytest.mark.parametrize(
    "written", ["otlp_logs:", "otlp_logs: {}", "otlp_logs: {tls: }", "otlp_logs: {protocol: grpc}"]
)
def test_an_exporter_without_an_endpoint_is_a_fault(tmp_path: Path, written: str) -> None:
    said = fault(tmp_path, f"exporters:\n  {written}\n")
    assert "exporters.otlp_logs: it needs an endpoint" in said
    assert "set exporters.otlp_logs.endpoint to http://host:port" in said


@pytest.mark.parametrize("written", ["exporters:", "exporters: {}", "exporters:\nreceivers: {otlp: }"])
def test_a_section_without_anything_says_nothing(tmp_path: Path, written: str) -> None:
    assert load(write(tmp_path, written)) == ServerSettings()


@pytest.mark.parametrize("endpoint", ["http://[a", "http://a:99999", "a:4317"])
def test_an_endpoint_that_is_none_is_a_fault(tmp_path: Path, endpoint: str) -> None:
    said = fault(tmp_path, f"exporters: {{otlp_logs: {{endpoint: '{endpoint}'}}}}")
    assert "exporters.otlp_logs: not the address of an OTLP endpoint" in said


@pytest.mark.parametrize(
    ("listening", "exporter", "itself"),
    [
        ("localhost:4317", "endpoint: 'http://localhost:4317'", True),
        ("localhost:4317", "endpoint: 'http://LOCALHOST'", True),
        ("localhost:4317", "endpoint: 'http://127.0.0.1:4317'", True),
        ("localhost:4317", "endpoint: 'http://[::1]:4317'", True),
        ("0.0.0.0:4317", "endpoint: 'http://localhost:4317'", True),
        ("audit.example:443", "endpoint: 'https://audit.example'", True),
        ("localhost:80", "endpoint: 'http://localhost/x', protocol: http/protobuf", True),
        ("localhost:4317", "endpoint: 'http://localhost:4318', protocol: http/protobuf", True),
        ("localhost:4317", "endpoint: 'http://localhost:14317'", False),
        ("localhost:4317", "endpoint: 'http://logs.example:4317'", False),
        ("127.0.0.1:4317", "endpoint: 'http://127.0.0.2:4317'", False),
        ("0.0.0.0:4317", "endpoint: 'http://logs.example:4317'", False),
        ("localhost:80", "endpoint: 'http://localhost'", False),
    ],
)
def test_a_service_does_not_pass_records_on_to_itself(
    tmp_path: Path, listening: str, exporter: str, *, itself: bool
) -> None:
    path = write(
        tmp_path,
        f"receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '{listening}'}}, http: }}}}}}\n"
        f"exporters: {{otlp_logs: {{{exporter}}}}}",
    )
    found = [str(e) for e in config.problems(path) if "this service itself" in str(e)]
    assert [bool(re.search("exporters.otlp_logs: .*; name the endpoint of another", e)) for e in found] == [
        True
    ] * itself


def test_a_service_that_listens_elsewhere_by_the_command_line_may_pass_records_on_to_the_usual_port(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "exporters: {otlp_logs: {endpoint: 'http://localhost:4317'}}")
    with pytest.raises(ConfigError, match="this service itself"):
        load(path)
    assert load(path, {"grpc": "localhost:14317"}).otlp_logs
