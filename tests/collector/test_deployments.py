"""compose, Kubernetes and systemd: what refers to what is there, and what they run is valid."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_audit._config_settings import BY_KEY
from otel_audit.config import problems
from tests.collector.support import CONFIGS, validate_with_collector

KUBERNETES = CONFIGS / "kubernetes"
COMPOSE = CONFIGS / "compose"
SYSTEMD = CONFIGS / "systemd"

Mapped = dict[str, Any]


def _documents(path: Path) -> list[Mapped]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


KUSTOMIZATION: Mapped = _documents(KUBERNETES / "kustomization.yaml")[0]
MANIFESTS = [d for name in KUSTOMIZATION["resources"] for d in _documents(KUBERNETES / name)]
WORKLOADS = {d["metadata"]["name"]: d for d in MANIFESTS if d["kind"] in ("StatefulSet", "DaemonSet")}
SETTINGS = [COMPOSE / "audit.yaml", KUBERNETES / "audit.yaml", SYSTEMD / "audit.yaml"]


def _of_kind(kind: str) -> list[Mapped]:
    return [d for d in MANIFESTS if d["kind"] == kind]


def _pod(workload: Mapped) -> Mapped:
    pod: Mapped = workload["spec"]["template"]["spec"]
    return pod


def _containers(workload: Mapped) -> list[Mapped]:
    pod = _pod(workload)
    return [*pod["containers"], *pod.get("initContainers", [])]


def _labels(workload: Mapped) -> Mapped:
    labels: Mapped = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def _selected(selector: Mapping[str, str]) -> list[str]:
    return [name for name, w in WORKLOADS.items() if selector.items() <= _labels(w).items()]


def _environment(container: Mapped) -> dict[str, str]:
    return {e["name"]: e.get("value", "secret") for e in container.get("env", [])}


def _mount_of(container: Mapped, path: str) -> Mapped:
    """The volume mount that holds `path`: the deepest one."""
    holding = [m for m in container["volumeMounts"] if (path + "/").startswith(m["mountPath"].rstrip("/") + "/")]
    assert holding, f"{path} is on no volume of {container['name']}"
    return max(holding, key=lambda m: len(m["mountPath"]))


# --- the settings of otel-audit itself --------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", SETTINGS, ids=lambda p: p.parent.name)
def test_otel_audit_takes_its_settings(path: Path) -> None:
    needed = [key for key in _keys(yaml.safe_load(path.read_text())) if not _known(key)]
    if needed:
        pytest.skip(f"this version has no {', '.join(sorted(needed))}")
    assert problems(path) == []


def _known(key: str) -> bool:
    return any(known == key or key.startswith(f"{known}.") for known in BY_KEY)


def _keys(config: Mapped, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{path}.")
        else:
            yield path


# --- Kubernetes -------------------------------------------------------------------------------------------------------------
def test_every_manifest_is_in_the_kustomization() -> None:
    generated = {f.partition("=")[2] or f for g in KUSTOMIZATION["configMapGenerator"] for f in g["files"]}
    files = {p.name for p in KUBERNETES.iterdir()} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"]) | {f for f in generated if not f.startswith("../")}
    assert all((KUBERNETES / f).is_file() for f in generated)


def test_kustomize_renders_it() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not there")
    command = [kubectl, "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(KUBERNETES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rendered = [d for d in yaml.safe_load_all(done.stdout) if d]
    assert len(rendered) == len(MANIFESTS) + len(KUSTOMIZATION["configMapGenerator"])
    agent = next(d for d in rendered if d["kind"] == "ConfigMap" and "agent" in d["metadata"]["name"])
    assert agent["data"]["agent.yaml"] == (CONFIGS / "agent.yaml").read_text()
    daemon = next(d for d in rendered if d["kind"] == "DaemonSet")
    volumes = {v["name"]: v for v in daemon["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == agent["metadata"]["name"]  # with the hash of its content


def test_what_pods_mount_exists() -> None:
    secrets = {d["metadata"]["name"]: set(d["stringData"]) for d in _of_kind("Secret")}
    maps = {g["name"] for g in KUSTOMIZATION["configMapGenerator"]}
    for workload in WORKLOADS.values():
        claims = [c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])]
        volumes = {v["name"]: v for v in _pod(workload)["volumes"]}
        for container in _containers(workload):
            assert {m["name"] for m in container["volumeMounts"]} <= set(volumes) | set(claims)
            for entry in container.get("env", []):
                if "valueFrom" in entry:
                    reference = entry["valueFrom"]["secretKeyRef"]
                    assert reference["key"] in secrets[reference["name"]]
        for volume in volumes.values():
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps


def test_what_must_last_is_on_a_volume_that_lasts() -> None:
    log = WORKLOADS["otel-audit"]["spec"]
    directory = yaml.safe_load((KUBERNETES / "audit.yaml").read_text())["log"]["directory"]
    assert log["replicas"] == 1
    (container,) = log["template"]["spec"]["containers"]
    assert _mount_of(container, directory)["name"] in [c["metadata"]["name"] for c in log["volumeClaimTemplates"]]

    gateway = WORKLOADS["otelcol-audit-gateway"]["spec"]
    (container,) = gateway["template"]["spec"]["containers"]
    environment = _environment(container)
    (claim,) = gateway["volumeClaimTemplates"]
    assert _mount_of(container, environment["AUDIT_QUEUE_DIR"])["name"] == claim["metadata"]["name"]
    gibibytes = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
    assert gibibytes << 30 >= 3 * int(environment["AUDIT_QUEUE_BYTES"])

    agent = _pod(WORKLOADS["otelcol-audit-agent"])
    container = agent["containers"][0]
    mount = _mount_of(container, _environment(container)["AUDIT_QUEUE_DIR"])["name"]
    assert "hostPath" in next(v for v in agent["volumes"] if v["name"] == mount)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_probes_ask_what_is_there(name: str) -> None:
    container = _pod(WORKLOADS[name])["containers"][0]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    paths = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        paths[probe] = asked["path"], ports[asked["port"]], asked.get("scheme", "HTTP")
    if name == "otel-audit":
        http = yaml.safe_load((KUBERNETES / "audit.yaml").read_text())["receivers"]["otlp"]["protocols"]["http"]
        port, scheme = int(http["endpoint"].rpartition(":")[2]), "HTTPS" if "tls" in http else "HTTP"
        assert paths["livenessProbe"] == paths["startupProbe"] == ("/livez", port, scheme)
        assert paths["readinessProbe"] == ("/readyz", port, scheme)
    else:
        port = int(_environment(container)["AUDIT_HEALTH_ENDPOINT"].rpartition(":")[2])
        assert set(paths.values()) == {("/", port, "HTTP")}


@pytest.mark.parametrize(
    ("name", "config"), [("otelcol-audit-agent", "agent.yaml"), ("otelcol-audit-gateway", "gateway.yaml")]
)
def test_the_collectors_run_a_file_of_ours_with_variables_that_it_knows(name: str, config: str) -> None:
    container = _pod(WORKLOADS[name])["containers"][0]
    assert container["args"][0] == "--config"
    assert Path(container["args"][1]).name == config
    environment = _environment(container)
    known = set(re.findall(r"\$\{env:([A-Z_]+)", (CONFIGS / config).read_text())) | {"GOMEMLIMIT"}
    assert set(environment) <= known
    assert validate_with_collector([CONFIGS / config], environment) == ""
    for key, value in environment.items():
        if key.endswith("_FILE"):
            mount = _mount_of(container, value)
            volume = next(v for v in _pod(WORKLOADS[name])["volumes"] if v["name"] == mount["name"])
            secret = next(d for d in _of_kind("Secret") if d["metadata"]["name"] == volume["secret"]["secretName"])
            assert Path(value).name in secret["stringData"]


def test_endpoints_are_services_of_ours() -> None:
    ports = {d["metadata"]["name"]: {p["port"] for p in d["spec"]["ports"]} for d in _of_kind("Service")}
    for name in ("otelcol-audit-agent", "otelcol-audit-gateway"):
        host, _, port = _environment(_pod(WORKLOADS[name])["containers"][0])["AUDIT_ENDPOINT"].rpartition(":")
        service, namespace, _ = host.split(".")
        assert namespace == KUSTOMIZATION["namespace"]
        assert int(port) in ports[service]


def test_services_and_budgets_and_policies_select_pods_that_are_there() -> None:
    for service in _of_kind("Service"):
        (name,) = _selected(service["spec"]["selector"])
        named = {p["name"] for c in _pod(WORKLOADS[name])["containers"] for p in c["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= named
    for workload in WORKLOADS.values():
        assert workload["spec"]["selector"]["matchLabels"].items() <= _labels(workload).items()
        if workload["kind"] == "StatefulSet":
            assert workload["spec"]["serviceName"] in [s["metadata"]["name"] for s in _of_kind("Service")]
    (budget,) = _of_kind("PodDisruptionBudget")
    (name,) = _selected(budget["spec"]["selector"]["matchLabels"])
    assert WORKLOADS[name]["spec"]["replicas"] > budget["spec"]["maxUnavailable"]  # one is always there


def test_every_pod_has_a_network_policy_and_reaches_what_it_sends_to() -> None:
    policies = {
        tuple(_selected(p["spec"]["podSelector"].get("matchLabels", {}))): p["spec"] for p in _of_kind("NetworkPolicy")
    }
    everyone = tuple(WORKLOADS)
    assert policies[everyone]["policyTypes"] == ["Ingress", "Egress"]
    assert set(policies) == {everyone, *((name,) for name in WORKLOADS)}
    for sender, receiver in [("otelcol-audit-agent", "otelcol-audit-gateway"), ("otelcol-audit-gateway", "otel-audit")]:
        out = [
            t["podSelector"]["matchLabels"]
            for e in policies[(sender,)]["egress"]
            for t in e["to"]
            if "podSelector" in t
        ]
        assert any(receiver in _selected(labels) for labels in out)
        into = [
            f["podSelector"]["matchLabels"]
            for i in policies[(receiver,)]["ingress"]
            for f in i["from"]
            if "podSelector" in f
        ]
        assert any(sender in _selected(labels) for labels in into)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_pods_may_do_little_and_have_time_to_stop(name: str) -> None:
    pod = _pod(WORKLOADS[name])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] > 40  # a delivery's timeout, and service.shutdown_timeout
    for container in _containers(WORKLOADS[name]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert "memory" in container["resources"]["limits"]
    for container in pod["containers"]:
        assert "runAsUser" not in container["securityContext"]  # that of the pod, which is not root's


@pytest.mark.parametrize("name", ["otelcol-audit-agent", "otelcol-audit-gateway"])
def test_memory_limits_agree(name: str) -> None:
    container = _pod(WORKLOADS[name])["containers"][0]
    environment = _environment(container)
    limit = int(environment["AUDIT_MEMORY_MIB"])
    assert int(environment["GOMEMLIMIT"].removesuffix("MiB")) == limit * 8 // 10
    text = container["resources"]["limits"]["memory"]
    given = int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]
    assert given >= limit + 50  # the limiter counts the heap alone


# --- compose ----------------------------------------------------------------------------------------------------------------
def test_compose_fits_together() -> None:
    compose = _documents(COMPOSE / "compose.yaml")[0]
    services, volumes = compose["services"], compose["volumes"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (COMPOSE / source).exists() if source.startswith(".") else source in volumes
        for other in service.get("depends_on", {}):
            assert other in services
        if isinstance(build := service.get("build"), dict):
            assert (COMPOSE / build["context"] / build["dockerfile"]).is_file()
    audit = yaml.safe_load((COMPOSE / "audit.yaml").read_text())
    protocols = audit["receivers"]["otlp"]["protocols"]
    collector, log = services["collector"], services["otel-audit"]
    environment = collector["environment"]
    assert environment["AUDIT_ENDPOINT"] == protocols["grpc"]["endpoint"]
    assert f"http://{protocols['http']['endpoint']}/readyz" in log["healthcheck"]["test"][-1]
    assert audit["log"]["directory"] in [v.split(":")[1] for v in log["volumes"]]
    assert any(environment["AUDIT_QUEUE_DIR"].startswith(v.split(":")[1] + "/") for v in collector["volumes"])
    assert validate_with_collector([CONFIGS / "agent.yaml"], environment) == ""
    assert all(s["stop_grace_period"] for name, s in services.items() if name != "queue-owner")
    shared = {name for name, s in services.items() if s.get("network_mode") == "service:otel-audit"}
    assert shared == {"collector", "crm"}  # loopback is theirs together


# --- systemd ----------------------------------------------------------------------------------------------------------------
UNITS = ["otel-audit.service", "otelcol-audit.service"]


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not there")
    unit = tmp_path / name
    # The programs are not installed here; everything else is as it stands.
    unit.write_text(re.sub(r"^(ExecStart\w*)=\S+", r"\1=/bin/true", (SYSTEMD / name).read_text(), flags=re.MULTILINE))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def _unit(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_units_keep_their_state_where_the_settings_say() -> None:
    audit = yaml.safe_load((SYSTEMD / "audit.yaml").read_text())
    unit = _unit("otel-audit.service")
    assert [f"/var/lib/{d}" for d in unit["StateDirectory"]] == [audit["log"]["directory"]]
    assert "/etc/otel-audit/audit.yaml" in unit["ExecStart"][0]
    assert unit["Type"] == ["notify"]

    lines = (SYSTEMD / "environment").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    unit = _unit("otelcol-audit.service")
    assert environment["AUDIT_QUEUE_DIR"].startswith(f"/var/lib/{unit['StateDirectory'][0]}/")
    assert environment["AUDIT_ENDPOINT"] == audit["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    config = CONFIGS / Path(environment["OTELCOL_CONFIG"]).name
    known = set(re.findall(r"\$\{env:([A-Z_]+)", config.read_text())) | {"GOMEMLIMIT", "OTELCOL_CONFIG"}
    assert set(environment) <= known
    assert validate_with_collector([config], environment) == ""


@pytest.mark.parametrize("name", UNITS)
def test_units_start_again_and_have_time_to_stop(name: str) -> None:
    unit = _unit(name)
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]  # for ever
    assert int(unit["TimeoutStopSec"][0].removesuffix("s")) > 40
    users = {line.split()[1] for line in (SYSTEMD / "sysusers.conf").read_text().splitlines() if line.startswith("u ")}
    assert unit["User"][0] in users


def test_the_dashboard_is_json_with_panels() -> None:
    dashboard = json.loads((CONFIGS / "grafana" / "otel-audit.json").read_text())
    panels = dashboard["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    assert all(p["targets"] for p in panels if p["type"] != "row")
    variables = {v["name"] for v in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\}?", json.dumps(dashboard)))
    assert used <= variables
