import hashlib
import math
from pathlib import Path

import pyarrow as pa
import pytest

from otel_audit._senders_file import load_senders
from otel_audit.errors import ConfigError
from otel_audit.senders import Allowance, Bucket, Directory, Sender, digest_of, new_token

A, B, C = (digest_of(f"token-{letter}") for letter in "abc")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


# --- tokens -------------------------------------------------------------------------------------------------------------
def test_tokens_are_long_random_and_known_by_their_sha256() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) >= 43 and token.startswith("oat_") for token in tokens)
    assert digest_of("abc") == hashlib.sha256(b"abc").hexdigest()


def test_no_text_of_a_header_breaks_the_digest() -> None:
    assert digest_of("\udc80é")


# --- who it is ----------------------------------------------------------------------------------------------------------
CRM = Sender("crm", (A, B))
EDGE = Sender("edge", certificate=("spiffe://example/edge/*", "edge"))
BOTH = Sender("both", (C,), certificate=("gateway",))


@pytest.mark.parametrize(
    ("digest", "names", "expected"),
    [
        (A, (), CRM),
        (B, (), CRM),
        (A, ("edge",), CRM),
        (digest_of("other"), (), None),
        (None, (), None),
        (None, ("edge",), EDGE),
        (None, ("x", "spiffe://example/edge/7"), EDGE),
        (None, ("spiffe://example/edge",), None),
        (None, ("Edge",), None),
        (digest_of("other"), ("edge",), EDGE),
        (C, ("gateway",), BOTH),
        (C, (), None),
        (C, ("edge",), None),
        (None, ("gateway",), None),
    ],
)
def test_a_sender_is_found_by_what_it_must_show(digest: str | None, names: tuple[str, ...], expected: object) -> None:
    assert Directory([CRM, EDGE, BOTH]).find(digest, names) is expected


@pytest.mark.parametrize(
    ("senders", "said"),
    [
        ([Sender("a", (A,)), Sender("a", (B,))], "two senders have this name"),
        ([Sender("a", (A,)), Sender("b", (A,))], "a has the same token"),
        ([Sender("a")], "nothing says how it proves who it is"),
    ],
)
def test_senders_that_cannot_be_told_apart_are_an_error(senders: list[Sender], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Directory(senders)


# --- what it may say ----------------------------------------------------------------------------------------------------
def refused(sender: Sender, services: list[str | None], sources: list[str | None]) -> list[int]:
    mask = Allowance(sender).refused(pa.array(services, pa.string()), pa.array(sources, pa.string()))
    return [] if mask is None else [i for i, bad in enumerate(mask.to_pylist()) if bad]


def test_a_sender_speaks_for_its_services_and_sources_alone() -> None:
    sender = Sender("a", (A,), services=("crm", "billing-*"), sources=("crm-?",))
    services = ["crm", "billing-eu", "payroll", "crm", "CRM", None]
    sources = ["crm-1", None, "crm-1", "crm-10", None, None]
    assert refused(sender, services, sources) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        (Sender("a", (A,)), []),
        (Sender("a", (A,), services=("*",)), []),
        (Sender("a", (A,), sources=("x",)), [1]),
        (Sender("a", (A,), services=("c",)), [1, 2]),
    ],
)
def test_what_is_not_narrowed_is_free(sender: Sender, expected: list[int]) -> None:
    assert refused(sender, ["c", "d", None], ["x", "y", None]) == expected


# --- how much -----------------------------------------------------------------------------------------------------------
def test_a_bucket_lets_a_request_pass_whole_and_then_waits_until_the_debt_is_paid() -> None:
    clock = Clock()
    bucket = Bucket(10, 100, clock)
    assert bucket.wait_s() == 0
    bucket.take(150)
    assert bucket.wait_s() == pytest.approx(5.1)
    clock.now_s += 4
    assert bucket.wait_s() == pytest.approx(1.1)
    clock.now_s += 1.2
    assert bucket.wait_s() == 0


def test_a_bucket_holds_no_more_than_its_burst_and_takes_back_what_did_not_count() -> None:
    clock = Clock()
    bucket = Bucket(10, 100, clock)
    clock.now_s += 1000
    bucket.take(100)
    assert bucket.wait_s() > 0
    bucket.take(-100)
    assert bucket.wait_s() == 0
    bucket.take(-math.inf)
    bucket.take(101)
    assert bucket.wait_s() > 0


# --- the file -----------------------------------------------------------------------------------------------------------
def test_a_file_of_senders_says_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "senders.yaml"
    path.write_text(
        f"""
- name: crm
  token_sha256: {A.upper()}
- name: edge
  token_sha256: [{B}, {C}]
  certificate: edge
  services: [a, b*]
  sources: c
  rate_records_per_s: 5
  burst_records: 7
  max_request_mib: 2
"""
    )
    assert load_senders(path) == (
        Sender("crm", (A,)),
        Sender("edge", (B, C), ("edge",), ("a", "b*"), ("c",), 5, 7, 2 << 20),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one sender"),
        ("senders: []", "at least one sender"),
        ("- name: a\n  token_sha256: oat_secret", "senders.yaml:2.*SHA-256 of a token"),
        ("- name: a\n  services: [b]", "how it proves who it is"),
        ("- {name: a, certificate: b, rate_records_per_s: 0}", "above zero"),
        ("- [", "not YAML"),
        ("- oat_secret", "needs the keys of a sender"),
        ("- oat_secret: a", "a sender has no such key; it has name"),
        ("oat_secret", "at least one sender"),
        ("a: {token: oat_secret}", "at least one sender"),
        ("- {name: a, token_sha256: {token: oat_secret}}", "SHA-256 of a token"),
        ("- {name: a, token_sha256: [[oat_secret]]}", "SHA-256 of a token"),
        ("- {name: a, token_sha256: 123456789}", "SHA-256 of a token"),
        ("- {name: {token: oat_secret}}", "needs text"),
    ],
)
def test_a_file_that_says_nothing_usable_is_an_error_without_its_secrets(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "senders.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        load_senders(path)
    assert "oat_secret" not in str(error.value)
    assert "123456789" not in str(error.value)
