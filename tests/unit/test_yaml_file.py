import re
from pathlib import Path

import pytest

from otel_audit._yaml_file import load_yaml, merge, parse_yaml
from otel_audit.errors import ConfigError


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "a.yaml")
    return str(error.value)


def test_every_value_knows_its_line() -> None:
    root = parse_yaml("a:\n  b: 1\n  c:\n    - x\n    - y\nd:\n  e: 2\n", "a.yaml")
    found = {path: node.line for path in ("a.b", "a.c", "d.e") if (node := root.at(*path.split(".")))}
    assert found == {"a.b": 2, "a.c": 3, "d.e": 7}
    listed = root.at("a", "c")
    assert listed is not None
    assert [(n.value, n.line) for n in listed.items] == [("x", 4), ("y", 5)]
    assert root.at("a", "nothing", "below") is None


def test_aliases_and_merge_keys_are_followed() -> None:
    root = parse_yaml("base: &b {x: 1, y: 2}\none:\n  <<: *b\n  y: 3\ntwo: *b\n", "a.yaml")
    assert root.plain() == {"base": {"x": 1, "y": 2}, "one": {"x": 1, "y": 3}, "two": {"x": 1, "y": 2}}


def test_an_alias_that_holds_itself_is_refused() -> None:
    assert "holds itself" in refused("a: &a [*a]")
    assert "holds itself" in refused("a: &a\n  b: *a\n")


def test_an_alias_that_grows_beyond_measure_is_refused() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n"
    assert "too large" in refused(bomb)


def test_files_are_merged_key_by_key_and_lists_are_replaced() -> None:
    below = parse_yaml("a: {b: 1, c: [1, 2]}\nd: 1\n", "below.yaml")
    above = parse_yaml("a: {c: [3], e: 4}\nd: {f: 1}\n", "above.yaml")
    merged = merge(below, above)
    assert merged.plain() == {"a": {"b": 1, "c": [3], "e": 4}, "d": {"f": 1}}
    kept, replaced = merged.at("a", "b"), merged.at("a", "c")
    assert kept is not None
    assert replaced is not None
    assert (kept.file, replaced.file) == ("below.yaml", "above.yaml")


def test_what_is_not_yaml_or_has_no_text_for_a_key_is_refused_with_its_place() -> None:
    assert "a.yaml:1: not YAML" in refused("a: [")
    assert "a.yaml:2: a key must be text" in refused("a: 1\n? [x, y]\n: 2\n")
    assert "a.yaml:1: ${env:1X} names no environment variable" in refused("a: ${env:1X}")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Basic: hunter2", "mapping values are not allowed here, at column 15"),
        ("%hunter2", "found character '%' that cannot start any token"),
        ("*hunter2", "found undefined alias …"),
        ("!hunter2 x", "could not determine a constructor for the tag …"),
        ("!it'shunter2 x", "could not determine a constructor for the tag …"),
        ('"x" hunter2', "expected <block end>, but found '<scalar>'"),
        ('"\\hunter2"', "found unknown escape character 'h'"),
    ],
)
def test_what_stands_where_it_is_not_yaml_is_not_shown(value: str, said: str) -> None:
    error = refused(f"a:\n  token: {value}\n")
    assert f"a.yaml:2: not YAML: {said}" in error
    assert "hunter2" not in error


def test_variables_of_other_providers_stay_as_they_are() -> None:
    assert parse_yaml("a: x${file:/etc/token}y\nb: ${file:/etc/token}\n", "a.yaml").plain() == {
        "a": "x${file:/etc/token}y",
        "b": "${file:/etc/token}",
    }


def test_a_reader_may_say_what_stands_for_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_AUDIT_NOT_SET", raising=False)
    seen: list[tuple[str, str]] = []

    def unset(node: object, name: str) -> str:
        seen.append((getattr(node, "place", ""), name))
        return ""

    root = parse_yaml("a:\n  b: pre-${env:OTEL_AUDIT_NOT_SET}\n", "a.yaml", unset=unset)
    assert root.plain() == {"a": {"b": "pre-"}}
    assert seen == [("a.yaml:2", "OTEL_AUDIT_NOT_SET")]


def test_a_text_that_looks_like_a_number_arrives_as_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN", "0123")
    node = parse_yaml("a: ${env:PIN}", "a.yaml").at("a")
    assert node is not None
    assert (node.value, node.text) == (83, "0123")


def test_an_empty_file_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# only a comment\n")
    assert load_yaml(tmp_path / "a.yaml").value is None


@pytest.mark.parametrize("value", ["2001-99-01", "!!int foo", "!!timestamp 'foo'", "!!float x"])
def test_a_value_that_is_not_what_it_looks_like_is_refused_with_its_line(value: str) -> None:
    assert re.search(r"a\.yaml:2: .*quote it if it is text", refused(f"x: 1\na: {value}\n"))


def test_several_documents_are_refused_with_what_to_do() -> None:
    assert "a.yaml:2: a second YAML document begins" in refused("a: 1\n---\nb: 2\n")
