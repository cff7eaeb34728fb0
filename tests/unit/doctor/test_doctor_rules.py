"""Every rule of `otel-audit doctor` finds what is bad, where it is, and nothing else; configurations of ours are clean.

The files in `bad/` say what is to be found on the line where it is: `# expect: rule, rule`.
"""

import re
from pathlib import Path

import pytest

from otel_audit.doctor import RULES, examine
from tests.tools import ROOT

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))
OURS = sorted(p for p in (ROOT / "collector-config").rglob("*.yaml") if "\n  pipelines:" in p.read_text())
DOCS = ROOT / "docs" / "doctor.md"
_EXPECTED = re.compile(r"# expect: (.+)$")


def expected(path: Path) -> set[tuple[int, str]]:
    found = set()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = _EXPECTED.search(line)
        if match:
            found |= {(number, rule.strip()) for rule in match[1].split(",")}
    return found


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_a_bad_configuration_has_its_findings_and_only_those(path: Path) -> None:
    found = examine([[str(path)]])
    assert {(f.line, f.rule) for f in found} == expected(path)
    assert {f.file for f in found} <= {str(path)}
    assert expected(path) or path.stem == "good"


def test_every_rule_has_a_bad_example() -> None:
    assert set(RULES) == {rule for path in BAD for _, rule in expected(path)}


@pytest.mark.parametrize("path", OURS, ids=lambda p: p.stem)
def test_no_false_alarm_on_configurations_of_ours(path: Path) -> None:
    assert [f for f in examine([[str(path)]]) if f.severity != "note"] == []


def test_every_rule_is_documented_with_its_severity() -> None:
    documented = dict(re.findall(r"^\| `([a-z-]+)` \| (error|warning|note)\b", DOCS.read_text(), flags=re.MULTILINE))
    assert documented == {name: rule.severity for name, rule in RULES.items()}


def test_the_table_in_the_documentation_says_why() -> None:
    text = DOCS.read_text()
    assert [name for name, rule in RULES.items() if rule.why not in text] == []
