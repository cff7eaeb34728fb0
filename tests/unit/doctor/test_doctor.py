"""How `otel-audit doctor` reads files, finds its way, and speaks."""

import json
from pathlib import Path
from textwrap import indent

import pytest

from otel_audit._doctor_model import load_collector, seconds
from otel_audit._doctor_ottl import harms
from otel_audit._doctor_wire import host_of, is_loopback
from otel_audit._yaml_file import Node
from otel_audit.cli import run
from otel_audit.doctor import Finding, examine, guess_exporters
from otel_audit.errors import ConfigError, UsageError

BAD = Path(__file__).parent / "bad"
GOOD = (BAD / "good.yaml").read_text()


def written(folder: Path, text: str, name: str = "collector.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def rules(findings: list[Finding]) -> list[str]:
    return sorted(f.rule for f in findings)


# --- reading --------------------------------------------------------------------------------------------------------------
def test_later_files_win_and_findings_name_the_file_they_stand_in(tmp_path: Path) -> None:
    base = written(tmp_path, GOOD, "base.yaml")
    over = written(
        tmp_path, "exporters:\n  otlp_grpc/audit:\n    retry_on_failure:\n      max_elapsed_time: 60s\n", "over.yaml"
    )
    (only,) = examine([[base, over]])
    assert (only.rule, only.file, only.line) == ("retry-ends", over, 4)
    assert examine([[over, base]]) == []


@pytest.mark.parametrize("as_text", [True, False])
def test_the_configuration_in_a_collector_of_the_operator_is_judged(tmp_path: Path, *, as_text: bool) -> None:
    text = GOOD.replace("fsync: true", "fsync: false")
    below = f"config: |\n{indent(text, '    ')}" if as_text else f"config:\n{indent(text, '    ')}"
    path = written(tmp_path, f"apiVersion: opentelemetry.io/v1beta1\nkind: OpenTelemetryCollector\nspec:\n  {below}")
    assert rules(examine([[path]])) == ["storage-no-fsync"]


def test_environment_variables_are_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, GOOD.replace("fsync: true", "fsync: ${env:DOCTOR_FSYNC:-true}"))
    assert examine([[path]]) == []
    monkeypatch.setenv("DOCTOR_FSYNC", "false")
    assert rules(examine([[path]])) == ["storage-no-fsync"]


def test_an_unset_variable_is_a_warning_and_empty(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("fsync: true", "fsync: ${env:DOCTOR_NOBODY_SETS_THIS}"))
    found = {f.rule: f for f in examine([[path]])}
    assert set(found) == {"env-unset", "storage-no-fsync"}
    assert found["env-unset"].severity == "warning"
    assert "DOCTOR_NOBODY_SETS_THIS" in found["env-unset"].reason


def test_other_files_and_inline_yaml_are_put_in(tmp_path: Path) -> None:
    retry = written(tmp_path, "max_elapsed_time: 10m\n", "retry.yaml")
    text = GOOD.replace(
        "    retry_on_failure:\n      max_elapsed_time: 0\n", f"    retry_on_failure: ${{file:{retry}}}\n"
    )
    (only,) = examine([[written(tmp_path, text)]])
    assert (only.rule, only.file, only.line) == ("retry-ends", retry, 1)
    text = GOOD.replace("      max_elapsed_time: 0\n", "      max_elapsed_time: ${yaml:5m}\n")
    assert rules(examine([[written(tmp_path, text)]])) == ["retry-ends"]
    text = GOOD.replace("max_elapsed_time: 0", "max_elapsed_time: ${file:/nowhere/retry}")
    assert "provider-unresolved" in rules(examine([[written(tmp_path, text)]]))


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "a: [1\n", "receivers: {}\nreceivers: {}\n"])
def test_what_is_no_configuration_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        examine([[written(tmp_path, text)]])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "service:\n",
        "service:\n  pipelines:\n",
        "service:\n  pipelines: [traces]\n",
        "service:\n  pipelines:\n    traces:\n",
        "service: 7\nexporters: otlp\nreceivers: [1, {2: 3}]\n",
        "exporters:\n  otlp/audit:\nservice:\n  pipelines:\n    traces: {receivers: otlp, processors: {a: 1}, exporters: [otlp/audit]}\n",
    ],
)
def test_a_strange_configuration_is_judged_without_falling_over(tmp_path: Path, text: str) -> None:
    assert any(f.severity == "error" for f in examine([[written(tmp_path, text)]], exporters=()))


def test_the_service_s_own_configuration_is_told_apart(tmp_path: Path) -> None:
    path = written(tmp_path, "receivers: {otlp: {}}\nlog: {directory: /var/lib/audit}\n")
    with pytest.raises(ConfigError, match="otel-audit validate"):
        examine([[path]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0.0), ("0", 0.0), ("0s", 0.0), ("1m30s", 90.0), ("300ms", 0.3), (5_000_000_000, 5.0), ("soon", None)],
)
def test_durations_are_read_as_go_reads_them(value: object, expected: float | None) -> None:
    assert seconds(Node(value, "f", 1)) == expected


# --- the way --------------------------------------------------------------------------------------------------------------
def renamed(exporter: str, endpoint: str = "otel-audit:4317") -> str:
    return GOOD.replace("otlp_grpc/audit", exporter).replace("otel-audit:4317", endpoint)


@pytest.mark.parametrize(
    ("exporter", "endpoint"),
    [
        ("otlp_grpc/audit", "x:1"),
        ("otlp_grpc/to-audit-log", "x:1"),
        ("otlp_grpc", "otel-audit.observability.svc:4317"),
        ("otlp_grpc", "x:1"),
    ],
)
def test_the_exporter_is_guessed_by_name_by_host_or_because_it_is_the_only_one(
    tmp_path: Path, exporter: str, endpoint: str
) -> None:
    assert guess_exporters(load_collector([written(tmp_path, renamed(exporter, endpoint))])) == [exporter]


def test_where_several_exporters_could_be_meant_one_must_be_named(tmp_path: Path) -> None:
    text = renamed("otlp_grpc/one", "one:4317").replace("[otlp_grpc/one]", "[otlp_grpc/one, otlp_grpc/two]")
    path = written(
        tmp_path, text.replace("exporters:\n  ", "exporters:\n  otlp_grpc/two: {endpoint: 'two:4317'}\n  ", 1)
    )
    with pytest.raises(UsageError, match="--exporter"):
        examine([[path]])
    assert examine([[path]], exporters=["otlp_grpc/one"]) == []
    assert "queue-in-memory" in rules(examine([[path]], exporters=["otlp_grpc/two"]))
    with pytest.raises(UsageError, match="otlp_grpc/three"):
        examine([[path]], exporters=["otlp_grpc/three"])


def test_every_collector_on_the_way_is_judged(tmp_path: Path) -> None:
    agent = written(tmp_path, renamed("otlp_grpc", "gateway:4317"), "agent.yaml")
    gateway = written(tmp_path, (BAD / "sampler-tail.yaml").read_text(), "gateway.yaml")
    (only,) = examine([[agent], [gateway]])
    assert (only.rule, only.file) == ("sampler", gateway)


def test_limits_must_not_shrink_on_the_way(tmp_path: Path) -> None:
    agent = GOOD.replace("otlp_grpc/audit", "otlp_grpc").replace("size_mib: 16", "size_mib: 32")
    first, second = written(tmp_path, agent, "agent.yaml"), str(BAD / "good.yaml")
    (only,) = examine([[first], [second]])
    assert (only.rule, only.file) == ("limit-shrinks", first)
    assert "it takes 32 MiB, the next Collector takes 16 MiB" in only.reason
    batched = agent.replace("sizer: bytes\n", "sizer: bytes\n      batch: {max_size: 4000000, flush_timeout: 200ms}\n")
    assert examine([[written(tmp_path, batched, "agent.yaml")], [second]]) == []
    assert examine([[second], [first]]) == []


def test_settings_of_newer_collectors_are_known(tmp_path: Path) -> None:
    text = GOOD.replace("    fsync: true\n", "    fsync: true\n    max_size: 1000000000\n")
    text = text.replace("    check_interval: 1s\n", "    check_interval: 1s\n    garbage_collector: {}\n")
    assert examine([[written(tmp_path, text)]]) == []


def test_the_default_of_error_mode_depends_on_the_version_so_it_is_a_warning() -> None:
    severities = [examine([[str(BAD / f"transform-propagate{n}.yaml")]])[0].severity for n in ("", "-said")]
    assert severities == ["warning", "error"]


def test_a_loop_of_connectors_ends(tmp_path: Path) -> None:
    text = GOOD.replace("[otlp]", "[otlp, forward]").replace("[otlp_grpc/audit]", "[otlp_grpc/audit, forward]")
    assert examine([[written(tmp_path, text.replace("\nservice:", "\nconnectors:\n  forward:\n\nservice:"))]]) == []


def test_a_branch_that_does_not_lead_to_the_log_may_do_what_it_likes(tmp_path: Path) -> None:
    found = examine([[str(BAD / "shared-receiver.yaml")]])
    assert [f.severity for f in found] == ["note"]


@pytest.mark.parametrize(
    ("endpoint", "host", "loopback"),
    [
        ("otel-audit:4317", "otel-audit", False),
        ("https://user@audit.example.com:4317/v1", "audit.example.com", False),
        ("dns:///audit:4317", "audit", False),
        ("[2001:db8::1]:4317", "2001:db8::1", False),
        ("[::1]:4317", "::1", True),
        ("127.0.0.53:4317", "127.0.0.53", True),
        ("localhost:4317", "localhost", True),
        ("unix:///run/audit.sock", "localhost", True),
        ("127.example.com:1", "127.example.com", False),
    ],
)
def test_hosts_are_told_from_endpoints(endpoint: str, host: str, loopback: bool) -> None:
    assert host_of(endpoint) == host
    assert is_loopback(host) is loopback


# --- OTTL -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "statement",
    [
        'set(span.attributes["audit.action"], "read") where span.attributes["audit.action"] == nil',
        'set(attributes["audit.action"], "a") where attributes["http.route"] != nil and (attributes["audit.action"] == nil)',
        'set(span.attributes["audit.action"], "a") where span.attributes["audit.action"] == nil and (span.name == "a" or span.name == "b")',
        'set(span.attributes["url.query"], "")',
        'set(span.status.message, "")',
        'set(scope.name, "x")',
        'delete_matching_keys(span.attributes, "^http\\\\.request\\\\.header\\\\.")',
        'replace_pattern(span.attributes["url.full"], "[?#].*$", "")',
        'replace_all_patterns(span.attributes, "value", "\\\\beyJ[A-Za-z0-9_-]+\\\\.", "[redacted]")',
        'merge_maps(span.attributes, resource.attributes, "insert")',
        'set(span.attributes["note"], "set(kind, 1), delete_key(attributes, \\"audit.action\\")")',
        "not ottl at all (",
        "",
    ],
)
def test_statements_that_leave_records_alone(statement: str) -> None:
    assert harms(statement, "span") == []


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ('set(span.attributes["audit.action"], "a") where span.attributes["audit.action"] == nil or span.name == "x"', "identity-changed"),
        ('set(span.attributes["audit.action"], "a") where span.attributes["audit.outcome"] == nil', "identity-changed"),
        ('set(span.attributes["audit.action"], "span.attributes[\\"audit.action\\"] == nil")', "identity-changed"),
        ('delete_key(target=span.attributes, key="client.address")', "identity-removed"),
        ('keep_keys(attributes, ["a", "b"])', "identity-removed"),
        ('limit(attributes, 10, ["audit.client.id"])', "attributes-limited"),
        ('replace_all_patterns(attributes, "key", "^client\\\\.", "caller.")', "identity-removed"),
        ('set(attributes, {"a": 1})', "span-changed"),
        ("set(span_id, SpanID(0x0000000000000001))", "span-changed"),
    ],
)  # fmt: skip
def test_statements_that_change_records(statement: str, rule: str) -> None:
    assert [h.rule for h in harms(statement, "span")] == [rule]


# --- the command ----------------------------------------------------------------------------------------------------------
def ran(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["doctor", *arguments])
    out, err = capfd.readouterr()
    return code, out, err


def test_exit_codes_are_for_ci(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert ran(capfd, str(BAD / "good.yaml")) == (0, "", "nothing found that would lose or change calls\n")
    assert ran(capfd, str(BAD / "retry-ends.yaml"))[0] == 1
    assert ran(capfd, str(BAD / "timeout-short.yaml"))[0] == 0
    assert ran(capfd, str(BAD / "timeout-short.yaml"), "--strict")[0] == 1
    assert ran(capfd, str(BAD / "consumers-one.yaml"), "--strict")[0] == 0
    assert ran(capfd, str(tmp_path / "none.yaml"))[0] == 2
    assert ran(capfd)[0] == 2
    assert ran(capfd, str(BAD / "good.yaml"), "--canary", "localhost:4317")[0] == 2


def test_a_finding_says_where_how_grave_why_and_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    path = BAD / "retry-ends.yaml"
    _, out, err = ran(capfd, str(path))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "1h" in text)
    head, reason, *remedy = out.splitlines()
    assert head == f"{path}:{line}: error [retry-ends] otlp_grpc/audit"
    assert "retries end after 3600s" in reason
    assert remedy[1:5] == [
        "    exporters:", "      otlp_grpc/audit:", "        retry_on_failure:", "          max_elapsed_time: 0",
    ]  # fmt: skip
    assert err == "1 error, 0 warnings, 0 notes\n"


def test_json_is_one_object_a_finding_with_stable_keys(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capfd, "--json", str(BAD / "defaults.yaml"))
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [f["rule"] for f in found] == [
        "queue-drops",
        "queue-in-memory",
        "retry-ends",
        "queue-small",
        "timeout-short",
    ]
    for finding in found:
        assert list(finding) == ["rule", "severity", "file", "line", "component", "reason", "remedy"]


def test_next_collectors_and_exporters_are_named_on_the_command_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    agent = written(tmp_path, renamed("otlp_grpc/one", "one:4317"), "agent.yaml")
    over = written(tmp_path, "exporters: {otlp_grpc/audit: {compression: none}}\n", "over.yaml")
    code, out, _ = ran(capfd, agent, "--exporter", "otlp_grpc/one", "--next", f"{BAD / 'good.yaml'},{over}", "--json")
    assert code == 0
    assert [(json.loads(line)["rule"], json.loads(line)["file"]) for line in out.splitlines()] == [
        ("no-compression", over)
    ]
