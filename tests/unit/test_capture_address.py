"""A forged header never becomes the client's address."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.capture.address import ClientAddress, TrustedProxies, normal

LIST = ("10.0.0.0/8", "192.0.2.1", "2001:db8:ffff::/48")
PROXIES = TrustedProxies(LIST)
XFF, FORWARDED, REAL = "x-forwarded-for", "forwarded", "x-real-ip"
PEER = "10.1.1.1"
UNTRUSTED = ClientAddress(PEER, "untrusted", PEER)


def client(address: str) -> ClientAddress:
    return ClientAddress(address, "forwarded", PEER)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9:4711 ", "203.0.113.9"),
        ("203.0.113.9:_hidden", "203.0.113.9"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:80", "203.0.113.9"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ('"', None),
        ('"203.0.113.9', None),
        ("203.0.113.999", None),
        ("203.0.113.9:", None),
        ("203.0.113.9:port", None),
        ("203.0.113.9:123456", None),
        ("203.0.113.9%eth0", None),
        ("[203.0.113.9]", None),
        ("[2001:db8::1", None),
        ("[2001:db8::1]evil", None),
        ("[2001:db8::1]:", None),
        ("203.0.113.9 198.51.100.1", None),
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
        (PEER, "198.51.100.1", client("198.51.100.1")),
        # what the client wrote itself stands to the left of what the proxies appended
        (PEER, "127.0.0.1, 198.51.100.1", client("198.51.100.1")),
        (PEER, "6.6.6.6, 198.51.100.1, 192.0.2.1", client("198.51.100.1")),
        (PEER, "2001:db8::5, 2001:db8:ffff::1", client("2001:db8::5")),
        # everyone is a trusted proxy: the farthest is the client
        (PEER, "10.2.2.2, 10.3.3.3", client("10.2.2.2")),
        # nothing to the left of what cannot be read is believed
        (PEER, "198.51.100.1, unknown", UNTRUSTED),
        (PEER, "198.51.100.1, unknown, 10.3.3.3", ClientAddress("10.3.3.3", "untrusted", PEER)),
        (PEER, "", UNTRUSTED),
        (PEER, "1," * 5000, UNTRUSTED),
        (PEER, "6.6.6.6," + "10.2.2.2," * 40 + "10.2.2.2", ClientAddress("10.2.2.2", "untrusted", PEER)),
        # no caller hides by making the header long
        (PEER, "6.6.6.6," * 5000 + "198.51.100.1", client("198.51.100.1")),
        ("testclient", None, ClientAddress(None, None, None)),
        ("testclient", "198.51.100.1", ClientAddress(None, "untrusted", None)),
        (None, None, ClientAddress(None, None, None)),
        (None, "198.51.100.1", ClientAddress(None, "untrusted", None)),
    ],
)
def test_x_forwarded_for(peer: str | None, forwarded: str | None, expected: ClientAddress) -> None:
    assert PROXIES.verdict(peer, {} if forwarded is None else {XFF: forwarded}) == expected


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ("for=198.51.100.1", client("198.51.100.1")),
        ("For=198.51.100.1;proto=https;by=10.1.1.1", client("198.51.100.1")),
        ('proto=https; for="198.51.100.1:4711" ;host="a,b;c"', client("198.51.100.1")),
        ('for="[2001:db8::5]:4711", for="[2001:db8:ffff::1]"', client("2001:db8::5")),
        ("for=6.6.6.6, for=198.51.100.1,for=192.0.2.1", client("198.51.100.1")),
        # hidden by a proxy, or of no use: nothing to its left is believed
        ("for=_hidden", UNTRUSTED),
        ("for=unknown", UNTRUSTED),
        ("for=6.6.6.6, for=unknown, for=10.3.3.3", ClientAddress("10.3.3.3", "untrusted", PEER)),
        ("for=6.6.6.6, proto=https", UNTRUSTED),
        ("for=6.6.6.6;for=198.51.100.1", UNTRUSTED),
        ("by=198.51.100.1", UNTRUSTED),
        ("198.51.100.1", UNTRUSTED),
        ("", UNTRUSTED),
        ("for=", UNTRUSTED),
        ('for="198.51.100.1', UNTRUSTED),
        ('for="198.51.100.1"x', UNTRUSTED),
        ("for=6.6.6.6, ;;", UNTRUSTED),
        # a quote that the caller opened swallows nothing that was appended
        ('for="6.6.6.6, for=198.51.100.1', client("198.51.100.1")),
        ('for="6.6.6.6\\, for="198.51.100.1"', client("198.51.100.1")),
        ('for="6.6.6.6\\", for="[2001:db8::5]:1";host="x"', client("2001:db8::5")),
    ],
)
def test_forwarded(forwarded: str, expected: ClientAddress) -> None:
    assert PROXIES.verdict(PEER, {FORWARDED: forwarded}) == expected
    stranger = PROXIES.verdict("203.0.113.9", {FORWARDED: forwarded})
    assert stranger == ClientAddress("203.0.113.9", "untrusted", "203.0.113.9")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({REAL: "198.51.100.1"}, client("198.51.100.1")),
        ({REAL: "198.51.100.1, 6.6.6.6"}, UNTRUSTED),
        ({XFF: "198.51.100.1", REAL: "198.51.100.1"}, client("198.51.100.1")),
        # the nearest proxy saw another proxy
        ({XFF: "198.51.100.1, 10.2.2.2", REAL: "10.2.2.2"}, client("198.51.100.1")),
        ({XFF: "198.51.100.1", FORWARDED: "for=198.51.100.1"}, client("198.51.100.1")),
        # one of them is the caller's invention, and nobody knows which
        ({XFF: "198.51.100.1", REAL: "6.6.6.6"}, UNTRUSTED),
        ({XFF: "6.6.6.6", REAL: "198.51.100.1"}, UNTRUSTED),
        ({XFF: "198.51.100.1", FORWARDED: "for=6.6.6.6"}, UNTRUSTED),
        ({XFF: "6.6.6.6", FORWARDED: "for=198.51.100.1"}, UNTRUSTED),
        ({XFF: "198.51.100.1", FORWARDED: "for=unknown"}, UNTRUSTED),
        ({XFF: "198.51.100.1", FORWARDED: "for=198.51.100.1", REAL: "6.6.6.6"}, UNTRUSTED),
        ({XFF: "198.51.100.1", REAL: "unknown"}, UNTRUSTED),
    ],
)
def test_several_headers_must_agree(headers: Mapping[str, str], expected: ClientAddress) -> None:
    assert PROXIES.verdict(PEER, headers) == expected


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (XFF, "6.6.6.6, 198.51.100.1"),
        (FORWARDED, "for=6.6.6.6, for=198.51.100.1"),
        ("cf-connecting-ip", "198.51.100.1"),
    ],
)
def test_with_a_header_named_no_other_is_looked_at(header: str, value: str) -> None:
    proxies = TrustedProxies(LIST, header=header)
    assert proxies.headers == (header,)
    forged = {XFF: "6.6.6.6", FORWARDED: "for=6.6.6.6", REAL: "6.6.6.6"}
    assert proxies.verdict(PEER, {**forged, header: value}) == client("198.51.100.1")
    forged.pop(header, None)
    assert proxies.verdict(PEER, forged) == ClientAddress(PEER, "peer", PEER)


@pytest.mark.parametrize(
    ("hops", "chain", "expected"),
    [
        (1, "6.6.6.6, 198.51.100.1", ClientAddress("198.51.100.1", "forwarded", "203.0.113.9")),
        (2, "6.6.6.6, 198.51.100.1, 172.16.0.1", ClientAddress("198.51.100.1", "forwarded", "203.0.113.9")),
        (2, "6.6.6.6, 198.51.100.1, unknown", ClientAddress("198.51.100.1", "forwarded", "203.0.113.9")),
        # it did not come through all of them
        (2, "198.51.100.1", ClientAddress("203.0.113.9", "untrusted", "203.0.113.9")),
        (2, "unknown, 172.16.0.1", ClientAddress("203.0.113.9", "untrusted", "203.0.113.9")),
        (1, "", ClientAddress("203.0.113.9", "untrusted", "203.0.113.9")),
    ],
)
def test_a_count_of_proxies_whose_addresses_are_unknown(hops: int, chain: str, expected: ClientAddress) -> None:
    assert TrustedProxies(hops=hops).verdict("203.0.113.9", {XFF: chain}) == expected
    forwarded = ", ".join(f"for={hop.strip()}" for hop in chain.split(","))
    assert TrustedProxies(hops=hops).verdict("203.0.113.9", {FORWARDED: forwarded}) == expected


def test_list_and_count_together_stop_at_whichever_comes_first() -> None:
    # a client within the trusted network: the list alone would go on to what it forged
    inside = {XFF: "6.6.6.6, 10.5.5.5"}
    assert TrustedProxies(LIST).verdict(PEER, inside) == client("6.6.6.6")
    both = TrustedProxies(LIST, hops=1)
    assert both.verdict(PEER, inside) == client("10.5.5.5")
    assert TrustedProxies(LIST, hops=3).verdict(PEER, {XFF: "6.6.6.6, 198.51.100.1"}) == client("198.51.100.1")
    # the count does not open what the list closes
    assert both.verdict("203.0.113.9", {XFF: "6.6.6.6"}).client_ip == "203.0.113.9"


def test_a_unix_socket_peer_counts_only_when_named() -> None:
    forwarded = {XFF: "198.51.100.1"}
    assert TrustedProxies(("unix",)).verdict(None, forwarded) == ClientAddress("198.51.100.1", "forwarded", None)


def test_an_unreadable_entry_is_reported_and_the_others_count() -> None:
    proxies = TrustedProxies(("10.0.0.0/99", "10.0.0.0/8"))
    assert len(proxies.problems) == 1
    assert "10.0.0.0/99" in proxies.problems[0]
    assert proxies.trusts("10.1.1.1")


def test_a_list_of_which_nothing_can_be_read_trusts_nobody_also_with_a_count() -> None:
    proxies = TrustedProxies(("10.0.0.0/99",), hops=1)
    assert proxies.verdict(PEER, {XFF: "6.6.6.6"}) == UNTRUSTED


def test_a_count_alone_makes_no_peer_a_trusted_one() -> None:
    assert not TrustedProxies(hops=1).trusts_peer(PEER)
    assert PROXIES.trusts_peer("10.1.1.1:80")
    assert not PROXIES.trusts_peer("testclient")
    assert not PROXIES.trusts_peer(None)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({XFF: "6.6.6.6, 198.51.100.1"}, "6.6.6.6, 198.51.100.1"),
        ({FORWARDED: "for=6.6.6.6"}, "forwarded: for=6.6.6.6"),
        (
            {XFF: "6.6.6.6", REAL: "6.6.6.7", FORWARDED: "for=6.6.6.8"},
            "6.6.6.6 | forwarded: for=6.6.6.8 | x-real-ip: 6.6.6.7",
        ),
        ({XFF: "\xfc"}, "\\xfc"),
    ],
)
def test_the_chain_is_kept_as_it_came(headers: Mapping[str, str], expected: str | None) -> None:
    assert PROXIES.attributes(PEER, headers).get("audit.client.ip.chain") == expected
    assert PROXIES.attributes("203.0.113.9", headers).get("audit.client.ip.chain") == expected


def test_a_long_chain_keeps_the_end_that_the_proxies_wrote() -> None:
    padded = "6.6.6.6, " * 500 + "198.51.100.1"
    chain = PROXIES.attributes(PEER, {XFF: padded})["audit.client.ip.chain"]
    assert len(chain) == 512
    assert chain.startswith("...")
    assert chain.endswith(", 198.51.100.1")
    three = PROXIES.attributes(PEER, {XFF: padded, FORWARDED: padded, REAL: padded})["audit.client.ip.chain"]
    assert len(three) <= 512
    assert three.count("198.51.100.1") == 3


def test_the_attributes_are_the_verdict_also_when_it_is_remembered() -> None:
    for peer in (PEER, "203.0.113.9", None, "testclient"):
        for headers in ({}, {XFF: "198.51.100.1"}, {XFF: "198.51.100.1", REAL: "6.6.6.6"}, {REAL: "198.51.100.1"}):
            client_ip, source, peer_ip = PROXIES.verdict(peer, headers)
            for _ in range(2):
                said = PROXIES.attributes(peer, headers)
                assert said.get("audit.client.ip") == client_ip
                assert said.get("audit.client.ip.source") == source
                assert said.get("audit.peer.ip") == peer_ip


def test_memory_for_verdicts_is_bounded() -> None:
    proxies = TrustedProxies(LIST)
    for n in range(20_000):
        proxies.attributes(PEER, {XFF: f"{n}"})
        proxies.attributes(PEER, {XFF: "x" * 10_000 + str(n)})
    assert len(proxies._said) <= 4096
    assert all(len(str(key)) < 400 for key in [*proxies._said._young, *proxies._said._old])


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_gets_a_verdict_and_an_untrusted_peer_stays_the_client(peer: str, value: str) -> None:
    headers = {XFF: value, FORWARDED: value, REAL: value}
    for header in (None, *headers):
        everyone = TrustedProxies(("0.0.0.0/0", "::/0", "unix"), header=header)
        everyone.verdict(peer, headers)
        everyone.attributes(peer, headers)
        TrustedProxies(hops=2, header=header).verdict(peer, headers)
        assert TrustedProxies(header=header).verdict("203.0.113.9", headers).client_ip == "203.0.113.9"


# --- the property that everything here is for ------------------------------------------------------------------------------
# Real addresses and those an attacker makes up are of different networks, so that it shows whose word was taken.
real_proxies = st.sampled_from(["10.1.1.1", "10.2.2.2", "192.0.2.1", "2001:db8:ffff::1"])
real_clients = st.sampled_from(["198.51.100.1", "198.51.100.77", "2001:db8::5"])
forged_addresses = st.sampled_from(["6.6.6.6", "6.6.6.7", "2001:db8:666::6", "127.0.0.1"])
noise = st.text(alphabet='6.,;:="\\[] for_x', max_size=30)
forged_hops = st.one_of(forged_addresses, real_proxies, noise, st.sampled_from(["unknown", "_hidden", '"', '\\"', ""]))
ports = st.sampled_from(["", ":4711"])


@st.composite
def forged_values(draw: st.DrawFn) -> str:
    """What an attacker sends along: hops in either form, half a quote, anything."""
    hops = draw(st.lists(forged_hops, max_size=6))
    shape = draw(st.sampled_from(["{}", "for={}", 'for="{}"', 'for="[{}]:1"', 'for="{}', "{},"]))
    return draw(st.sampled_from([",", ", ", ";", " "])).join(shape.format(hop) for hop in hops)


def _node(address: str, port: str, *, forwarded: bool) -> str:
    text = f"[{address}]{port}" if ":" in address and (port or forwarded) else f"{address}{port}"
    if not forwarded:
        return text
    return f'for="{text}";proto=https;host="a, b"' if ":" in text else f"for={text};proto=https"


def is_forged(address: str | None) -> bool:
    return address is not None and address.startswith(("6.6.6.", "127.", "2001:db8:666"))


@given(
    forged=st.fixed_dictionaries(
        {}, optional={XFF: forged_values(), FORWARDED: forged_values(), REAL: forged_values()}
    ),
    proxies=st.lists(real_proxies, min_size=1, max_size=4),
    address=real_clients,
    written=st.sampled_from([XFF, FORWARDED]),
    port=ports,
    mode=st.sampled_from(["list", "count", "both"]),
    named=st.booleans(),
)
def test_no_address_from_what_an_attacker_wrote_becomes_the_client_ip(
    forged: dict[str, str], proxies: list[str], address: str, written: str, port: str, mode: str, named: bool
) -> None:
    """Every proxy appends the hop before it to one header and passes on the others as the attacker wrote them."""
    *passed, peer = proxies
    appended = [_node(hop, port, forwarded=written == FORWARDED) for hop in (address, *passed)]
    value = ", ".join([forged[written], *appended] if written in forged else appended)
    judge = TrustedProxies(
        LIST if mode != "count" else (),
        hops=len(proxies) if mode != "list" else None,
        header=written if named else None,
    )
    found = judge.verdict(peer, {**forged, written: value})
    assert not is_forged(found.client_ip), found
    if named or set(forged) <= {written}:
        assert found == ClientAddress(address, "forwarded", peer), "and no attacker hides the true one"
    assert judge.attributes(peer, {**forged, written: value})["audit.client.ip"] == found.client_ip


@given(forged=forged_values(), header=st.sampled_from([XFF, FORWARDED, REAL]))
def test_a_caller_that_speaks_to_us_itself_is_its_own_address(forged: str, header: str) -> None:
    found = PROXIES.verdict("198.51.100.1", {header: forged})
    assert found == ClientAddress("198.51.100.1", "untrusted", "198.51.100.1")
