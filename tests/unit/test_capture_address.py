"""A forged header never becomes the client's address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.capture.address import ClientAddress, TrustedProxies, normal

PROXIES = TrustedProxies(("10.0.0.0/8", "192.0.2.1", "2001:db8:ffff::/48"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9:4711 ", "203.0.113.9"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("203.0.113.999", None),
        ("1" * 10_000, None),
    ],
)
def test_addresses_have_one_normal_form(text: str, expected: str | None) -> None:
    assert normal(text) == expected


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", None, ClientAddress("203.0.113.9", "peer", "203.0.113.9")),
        # a header from a peer nobody trusts is ignored, and that is said
        ("203.0.113.9", "198.51.100.1", ClientAddress("203.0.113.9", "untrusted", "203.0.113.9")),
        ("10.1.1.1", "198.51.100.1", ClientAddress("198.51.100.1", "forwarded", "10.1.1.1")),
        # what the client wrote itself stands to the left of what the proxies appended
        ("10.1.1.1", "127.0.0.1, 198.51.100.1", ClientAddress("198.51.100.1", "forwarded", "10.1.1.1")),
        ("10.1.1.1", "6.6.6.6, 198.51.100.1, 192.0.2.1", ClientAddress("198.51.100.1", "forwarded", "10.1.1.1")),
        ("10.1.1.1", "2001:db8::5, 2001:db8:ffff::1", ClientAddress("2001:db8::5", "forwarded", "10.1.1.1")),
        # everyone is a trusted proxy: the farthest is the client
        ("10.1.1.1", "10.2.2.2, 10.3.3.3", ClientAddress("10.2.2.2", "forwarded", "10.1.1.1")),
        # nothing to the left of what cannot be read is believed
        ("10.1.1.1", "198.51.100.1, unknown", ClientAddress("10.1.1.1", "untrusted", "10.1.1.1")),
        ("10.1.1.1", "198.51.100.1, unknown, 10.3.3.3", ClientAddress("10.3.3.3", "untrusted", "10.1.1.1")),
        ("10.1.1.1", "", ClientAddress("10.1.1.1", "untrusted", "10.1.1.1")),
        ("10.1.1.1", "1," * 5000, ClientAddress("10.1.1.1", "untrusted", "10.1.1.1")),
        ("10.1.1.1", "6.6.6.6," + "10.2.2.2," * 40 + "10.2.2.2", ClientAddress("10.2.2.2", "untrusted", "10.1.1.1")),
        ("testclient", None, ClientAddress(None, None, None)),
        ("testclient", "198.51.100.1", ClientAddress(None, "untrusted", None)),
        (None, None, ClientAddress(None, None, None)),
        (None, "198.51.100.1", ClientAddress(None, "untrusted", None)),
    ],
)
def test_verdict(peer: str | None, forwarded: str | None, expected: ClientAddress) -> None:
    assert PROXIES.verdict(peer, forwarded) == expected


def test_a_unix_socket_peer_counts_only_when_named() -> None:
    assert TrustedProxies(("unix",)).verdict(None, "198.51.100.1") == ClientAddress("198.51.100.1", "forwarded", None)


def test_an_unreadable_entry_is_reported_and_the_others_count() -> None:
    proxies = TrustedProxies(("10.0.0.0/99", "10.0.0.0/8"))
    assert len(proxies.problems) == 1
    assert "10.0.0.0/99" in proxies.problems[0]
    assert proxies.trusts("10.1.1.1")


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_gets_a_verdict_and_an_untrusted_peer_stays_the_client(peer: str, forwarded: str) -> None:
    TrustedProxies(("0.0.0.0/0", "::/0", "unix")).verdict(peer, forwarded)
    assert TrustedProxies().verdict("203.0.113.9", forwarded).client_ip == "203.0.113.9"
