import io
import json

import pytest

from otel_audit.cli import run
from otel_audit.senders import digest_of


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["token", *arguments]) == 0
    return capsys.readouterr().out


def test_a_token_is_made_and_printed_with_its_hash(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict(line.split(": ") for line in out(capsys).splitlines())
    assert lines.keys() == {"token", "token_sha256"}
    assert lines["token_sha256"] == digest_of(lines["token"])
    again = json.loads(out(capsys, "--json"))
    assert again["token_sha256"] == digest_of(again["token"])
    assert again["token"] != lines["token"]


def test_the_hash_of_a_token_that_is_there_is_printed_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "a-token-of-many-characters"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    assert out(capsys, "--hash") == f"token_sha256: {digest_of(token)}\n"


@pytest.mark.parametrize("given", ["", "short", "two words of which there are many", "ünïcode-of-many-characters-here"])
def test_what_is_no_good_token_is_refused(
    given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    assert run(["token", "--hash"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "otel-audit token makes one" in said.err
