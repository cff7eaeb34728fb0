"""Rules name and promise what they say; a file that cannot be meant is refused with the place and the remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from otel_audit.capture import rules as rules_module
from otel_audit.capture.policy import read_policy
from otel_audit.capture.redact import Redactor
from otel_audit.capture.rules import Rules
from otel_audit.capture.settings import Settings
from otel_audit.errors import ConfigError
from tests.spool_support import DESTINATION

DOCUMENT = {
    "rule": [
        {"method": "POST", "route": "/contacts/{id}/merge", "action": "merge", "mode": "durable"},
        {"route": "/payments/*", "service": "billing", "mode": "fail-closed"},
        {"rpc": "crm.v1.Contacts/*", "service": "contacts"},
        {"rpc": "/crm.v1.Contacts/Merge", "action": "merge"},
        {"operation": "export*", "action": "export"},
        {"method": ["get", "HEAD"], "action": "look"},
        {"operation": "*", "action": "{operation}"},
    ],
    "redact": [
        {"attribute": "audit.note", "do": "truncate", "length": 8},
        {"attribute": "user.*", "do": "hash"},
    ],
}
TOML = """
[[rule]]
method = "POST"
route = "/contacts/{id}/merge"
action = "merge"
mode = "durable"
[[rule]]
route = "/payments/*"
service = "billing"
mode = "fail-closed"
[[rule]]
rpc = "crm.v1.Contacts/*"
service = "contacts"
[[rule]]
rpc = "/crm.v1.Contacts/Merge"
action = "merge"
[[rule]]
operation = "export*"
action = "export"
[[rule]]
method = ["get", "HEAD"]
action = "look"
[[rule]]
operation = "*"
action = "{operation}"
[[redact]]
attribute = "audit.note"
do = "truncate"
length = 8
[[redact]]
attribute = "user.*"
do = "hash"
"""
YAML = """
rule:
  - {method: POST, route: "/contacts/{id}/merge", action: merge, mode: durable}
  - {route: /payments/*, service: billing, mode: fail-closed}
  - {rpc: crm.v1.Contacts/*, service: contacts}
  - {rpc: /crm.v1.Contacts/Merge, action: merge}
  - {operation: "export*", action: export}
  - {method: [get, HEAD], action: look}
  - {operation: "*", action: "{operation}"}
redact:
  - {attribute: audit.note, do: truncate, length: 8}
  - {attribute: user.*, do: hash}
"""
FORMS = {"toml": TOML, "json": json.dumps(DOCUMENT), "yaml": YAML, "yml": YAML}


def load(folder: Path, text: str | bytes, ending: str = "toml") -> Rules:
    path = folder / f"rules.{ending}"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Rules.load(path)


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return load(tmp_path, TOML)


def http(method: str, route: str | None = None, **more: str) -> dict[str, Any]:
    return {"http.request.method": method, **({"http.route": route} if route else {}), **more}


@pytest.mark.parametrize("ending", FORMS)
def test_each_format_says_the_same(ending: str, tmp_path: Path) -> None:
    found = load(tmp_path, FORMS[ending], ending)
    said: list[Any] = [
        (r.methods, r.route and r.route.pattern, r.rpc and r.rpc.pattern, r.operation and r.operation.pattern)
        for r in found.rules
    ]
    assert said == [
        ({"POST"}, "/contacts/{id}/merge", None, None),
        (set(), "/payments/*", None, None),
        (set(), None, "crm.v1.Contacts/*", None),
        (set(), None, "crm.v1.Contacts/Merge", None),
        (set(), None, None, "export*"),
        ({"GET", "HEAD"}, None, None, None),
        (set(), None, None, "*"),
    ]
    assert [(r.attribute.pattern, r.do, r.length) for r in found.redactions] == [
        ("audit.note", "truncate", 8),
        ("user.*", "hash", 0),
    ]


@pytest.mark.parametrize(
    ("attributes", "operation", "expected"),
    [
        (http("POST", "/contacts/{contact_id}/merge"), "merge_contact", {"audit.action": "merge"}),
        (http("PUT", "/contacts/{contact_id}/merge"), None, {}),
        ({"http.method": "POST", "http.route": "contacts/<int:id>/merge"}, None, {"audit.action": "merge"}),
        (http("POST", None, **{"url.path": "/contacts/7/merge"}), None, {"audit.action": "merge"}),
        (http("POST", None, **{"http.target": "/contacts/7/merge?x=1"}), None, {"audit.action": "merge"}),
        (http("POST", None, **{"http.url": "http://h/contacts/7/merge?x"}), None, {"audit.action": "merge"}),
        (http("POST", None, **{"http.target": "http://h/contacts/7/merge"}), None, {"audit.action": "merge"}),
        (http("POST", "/payments/{id}"), None, {"audit.service": "billing"}),
        (http("GET", "/payments/{id}"), None, {"audit.service": "billing", "audit.action": "look"}),
        ({"rpc.service": "crm.v1.Contacts", "rpc.method": "Get"}, None, {"audit.service": "contacts"}),
        (
            {"rpc.service": "crm.v1.Contacts", "rpc.method": "Merge"},
            None,
            {"audit.service": "contacts", "audit.action": "merge"},
        ),
        ({"rpc.method": "crm.v1.Contacts/Get"}, None, {"audit.service": "contacts"}),
        ({"rpc.service": "crm.v1.Other", "rpc.method": "Get"}, None, {}),
        (http("POST", "/x"), "exportAll", {"audit.action": "export"}),
        (http("POST", "/x"), "mergeContacts", {"audit.action": "mergeContacts"}),
        (http("POST", "/x"), None, {}),
        (http("POST", "/payments/{id}", **{"audit.service": "mine"}), "op", {"audit.action": "op"}),
        (http("GET", "/x", **{"audit.action": "mine"}), None, {}),
        (http("GET", None, **{"http.url": "http://[bad"}), None, {"audit.action": "look"}),
        ({"http.route": ["odd"]}, None, {}),
        ({}, None, {}),
    ],
)
def test_the_first_rule_that_matches_and_sets_a_name_gives_it(
    rules: Rules, attributes: dict[str, Any], operation: str | None, expected: dict[str, str]
) -> None:
    for _ in range(2):  # worked out, and remembered
        assert dict(rules.names_for(attributes, operation)) == expected


@pytest.mark.parametrize(
    ("attributes", "mode"),
    [
        (http("POST", "/contacts/{id}/merge"), "durable"),
        (http("POST", None, **{"url.path": "/contacts/7/merge/"}), "durable"),
        (http("DELETE", None, **{"url.path": "/payments/7"}), "fail-closed"),
        (http("DELETE", None, **{"url.path": "/p%61yments/7"}), "fail-closed"),
        (http("DELETE", "/contacts/{id}"), None),
    ],
)
def test_modes_are_known_when_a_call_begins_by_its_route_or_its_path(
    rules: Rules, attributes: dict[str, Any], mode: str | None
) -> None:
    assert rules.mode_at_start(attributes) == mode
    assert rules.mode_at_end(attributes, "op") == mode


def test_what_is_remembered_is_bounded(rules: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_module, "_CACHE_MAX", 50)
    for n in range(500):
        rules.names_for(http("POST", None, **{"url.path": f"/x/{n}"}))
        rules.names_for(http("POST", f"/{n}" * 1000))
        assert len(rules._decided) <= 50
    assert rules.names_for(http("POST", "/contacts/{id}/merge")) == {"audit.action": "merge"}


def test_no_rules_are_no_work(tmp_path: Path) -> None:
    for found in (Rules.none(), load(tmp_path, ""), load(tmp_path, "", "yaml")):
        assert found.empty
        assert (found.names_for({}), found.mode_at_start({}), found.mode_at_end({})) == ({}, None, None)


# --- files that cannot be meant ----------------------------------------------------------------------------------------------
RULE = '[[rule]]\nroute = "/x"\n'
BAD: dict[str, tuple[str | bytes, str, str]] = {
    "syntax": ("[[rule]\nroute = 1", "at line 1", "the ending says the format"),
    "json": ('{"rule": [,]}', "line 1 column 11", "the ending says the format"),
    "yaml": ("rule: [", "line 1", "the ending says the format"),
    "not a table": ("[1]", "not a table", "docs/annotate.md"),
    "bytes": (b"\xff\xfe[\0", "not UTF-8", "save it as UTF-8"),
    "part": ('[[rules]]\nroute = "/x"', "unknown key 'rules'", "did you mean rule?"),
    "unknown part": ("[zebra]", "unknown key 'zebra'", "use rule, redact"),
    "no list": ("[rule]\nroute = 1", "[rule]: not a list", "write [[rule]]"),
    "no tables": ("rule = [1]", "[rule 1]: not a table", "docs/annotate.md"),
    "key": (RULE + 'acton = "a"', "[rule 1]: unknown key 'acton'", "did you mean action?"),
    "second": (RULE + 'action = "a"\n' + RULE + "wrong = 1", "[rule 2]: unknown key 'wrong'", "use method"),
    "type": (RULE + "action = 5", "action is not a text", "quotes"),
    "empty": (RULE + 'action = " "', "action is not a text", "quotes"),
    "lengthy": (RULE + f'action = "{"a" * 300}"', "256 characters", "quotes"),
    "mode": (RULE + 'mode = "fail_closed"', "no such mode: 'fail_closed'", "did you mean fail-closed?"),
    "odd mode": (RULE + 'mode = "xyz"', "no such mode: 'xyz'", "use async, durable, fail-closed"),
    "method": ('[[rule]]\nmethod = "PSOT"\naction = "a"', "no such method: 'PSOT'", "did you mean POST?"),
    "methods": ('[[rule]]\nmethod = ["GET", "GTE"]\naction = "a"', "no such method: 'GTE'", "did you mean GET?"),
    "method type": ("[[rule]]\nmethod = 5\naction = 'a'", "method is not a text", "quotes"),
    "url": ('[[rule]]\nroute = "http://h/x"\naction = "a"', "the route is a URL", "such as /contacts/{id}"),
    "rpc": ('[[rule]]\nrpc = "crm.Contacts"\naction = "a"', "names no method", "crm.Contacts/*"),
    "both": (RULE + 'rpc = "a/b"\naction = "a"', "both a route and an rpc", "make two rules"),
    "rpc method": ('[[rule]]\nrpc = "a/b"\nmethod = "GET"\naction = "a"', "both a method and an rpc", "make two rules"),
    "matches nothing": ('[[rule]]\naction = "a"', "matches nothing in particular", '"*"'),
    "sets nothing": (RULE, "sets nothing", "set service, action or mode"),
    "placeholder": (RULE + 'action = "{verb}"', "no such placeholder in an action: {verb}", "{operation}"),
    "brace": (RULE + 'action = "{operation"', "no such placeholder in an action: {", "{operation}"),
    "too late": (
        '[[rule]]\noperation = "x"\nmode = "fail-closed"',
        "known only after the call",
        "name the route or the rpc",
    ),
    "redact": ('[[redact]]\nattribute = "x"', "needs attribute and do", "for example"),
    "do": ('[[redact]]\nattribute = "x"\ndo = "mask"', "no such do: 'mask'", "hash"),
    "do key": ('[[redact]]\nattributes = "x"\ndo = "drop"', "unknown key 'attributes'", "did you mean attribute?"),
    "length": ('[[redact]]\nattribute = "x"\ndo = "truncate"', "truncate needs a length", "length = 8"),
    "bad length": ('[[redact]]\nattribute = "x"\ndo = "truncate"\nlength = -1', "length is not a number", "characters"),
    "no length": ('[[redact]]\nattribute = "x"\ndo = "drop"\nlength = 8', "drop takes no length", "truncate?"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_the_place_and_the_remedy(name: str, tmp_path: Path) -> None:
    text, reason, hint = BAD[name]
    ending = name if name in ("json", "yaml") else "json" if name == "not a table" else "toml"
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text, ending)
    assert str(tmp_path / f"rules.{ending}") in str(error.value)
    assert reason in str(error.value)
    assert hint in error.value.hint


def test_what_is_no_file_of_rules_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="OTEL_AUDIT_RULES must name a file"):
        Rules.load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="OTEL_AUDIT_RULES must name a file"):
        Rules.load("a\0b")
    with pytest.raises(ConfigError, match="over 1048576 bytes"):
        load(tmp_path, "#" * 1_048_577)
    with pytest.raises(ConfigError, match="at most 1000"):
        load(tmp_path, (RULE + 'action = "a"\n') * 1001)
    with pytest.raises(ConfigError, match=r"rules\.json"):
        load(tmp_path, "[" * 100_000, "json")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(ConfigError, match="install pyyaml"):
        load(tmp_path, YAML, "yaml")


# --- the policy: also of a file that cannot be understood ---------------------------------------------------------------------
def settings(path: Path | None, **more: Any) -> Settings:
    return Settings(DESTINATION, rules_path=None if path is None else str(path), **more)


def test_a_good_file_is_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(TOML)
    policy = read_policy(settings(path, hash_key=b"k"))
    assert (len(policy.rules.rules), policy.mode, policy.problems) == (7, "async", ())
    assert policy.redactor is not None
    assert policy.redactor.apply({"audit.note": "123456789"}) == {"audit.note": "12345678"}
    (problem,) = read_policy(settings(path)).problems
    assert "OTEL_AUDIT_HASH_KEY is not set" in problem
    path.write_text(RULE + 'action = "a"')
    assert read_policy(settings(path)).redactor is None
    assert read_policy(settings(None)).rules.empty


@pytest.mark.parametrize(
    ("text", "given", "mode", "hides"),
    [
        ('[[rule]]\nacton = "x"', "async", "async", False),
        ('[[rule]]\nacton = "x"', "fail-closed", "fail-closed", False),
        ('[[rule]]\nacton = "x"\nmode = "durable"', "async", "durable", False),
        ('[[rule]]\nacton = "x"\nmode = "fail-closed"', "async", "fail-closed", False),
        ('[[redact]]\natribute = "x"', "async", "async", True),
        (b"\xff\xfe", "async", "durable", True),
        (None, "async", "durable", True),
        (None, "fail-closed", "fail-closed", True),
    ],
)
def test_a_file_that_cannot_be_understood_means_the_strictest_it_may_have_said(
    tmp_path: Path, text: str | bytes | None, given: Any, mode: str, hides: bool
) -> None:
    path = tmp_path / "rules.toml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    policy = read_policy(settings(path, mode=given))
    assert policy.rules.empty
    assert policy.mode == mode
    assert (policy.redactor is not None) is hides
    (problem,) = policy.problems
    assert "WITHOUT THE NAMES" in problem
    assert f"mode {mode}" in problem


def test_strictly_hidden_is_all_but_the_kind_of_call_and_who_is_hashed() -> None:
    said = {
        "http.method": "GET",
        "http.route": "/contacts/{id}",
        "http.status_code": 200,
        "http.target": "/contacts/7?token=secret",
        "http.url": "http://h/contacts/7?token=secret",
        "http.user_agent": "curl",
        "url.path": "/contacts/7",
        "net.peer.ip": "192.0.2.7",
        "app.anything": "secret",
        "audit.action": "merge",
        "audit.note": "secret",
        "audit.client.id": "web",
        "audit.client.ip": "192.0.2.7",
        "audit.client.auth": "jwt",
        "user.id": "kim",
        "audit.db.calls": 2,
        "audit.source.seq": 5,
    }
    shown = dict(Redactor.strict(b"k").apply(said))
    hashed = {k: v for k, v in shown.items() if str(v).startswith("hmac:")}
    assert set(hashed) == {"audit.client.id", "audit.client.ip", "user.id"}
    assert {k: v for k, v in shown.items() if k not in hashed} == {
        "http.method": "GET",
        "http.route": "/contacts/{id}",
        "http.status_code": 200,
        "audit.action": "merge",
        "audit.client.auth": "jwt",
        "audit.db.calls": 2,
        "audit.source.seq": 5,
    }
    assert Redactor.strict(b"k").apply(said) == shown
    assert Redactor.strict().apply(said) != Redactor.strict().apply(said), "a key that nobody knows"
