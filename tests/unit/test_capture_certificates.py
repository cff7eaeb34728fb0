"""Whom a client certificate names; what a caller puts in front of a proxy's element names nobody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.capture.certificates import Certificate, from_header, from_subject, from_xfcc

DIGEST = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688"


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("crm-batch", ("crm-batch",)),
        ("CN=crm-batch,O=Acme,C=DE", ("crm-batch", "CN=crm-batch,O=Acme,C=DE")),
        ("O = Acme, CN = crm-batch", ("crm-batch", "O = Acme, CN = crm-batch")),
        ("emailAddress=a@b,cn=crm-batch", ("crm-batch", "emailAddress=a@b,cn=crm-batch")),
        ("CN=leaf,CN=Users,DC=acme", ("leaf", "CN=leaf,CN=Users,DC=acme")),
        ("CN=one+OU=two", ("one", "CN=one+OU=two")),
        ("CN=host/crm.example", ("host/crm.example", "CN=host/crm.example")),
        ("/C=DE/O=Acme/CN=crm-batch", ("crm-batch", "/C=DE/O=Acme/CN=crm-batch")),
        # in this form nothing tells one attribute from two
        ("/C=DE/O=x/CN=admin/CN=crm-batch", ("/C=DE/O=x/CN=admin/CN=crm-batch",)),
        # what is escaped or quoted begins no attribute
        ("O=Acme\\,CN=admin,CN=real", ("real", "O=Acme\\,CN=admin,CN=real")),
        ('O="Acme,CN=admin",CN=real', ("real", 'O="Acme,CN=admin",CN=real')),
        ("CN=Acme\\, Inc", ("Acme, Inc", "CN=Acme\\, Inc")),
        ('CN="Acme, Inc"', ("Acme, Inc", 'CN="Acme, Inc"')),
        ("CN=M\\C3\\BCller", ("Müller", "CN=M\\C3\\BCller")),
        ("CN=,O=Acme", ("CN=,O=Acme",)),
        ('O="open', ('O="open',)),
        ("Acme, CN=admin", ("Acme, CN=admin",)),
        ("", ()),
    ],
)
def test_a_subject_names_the_client(subject: str, names: tuple[str, ...]) -> None:
    assert from_subject(subject) == Certificate(names)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            f'By=spiffe://mesh/ns/crm;Hash={DIGEST};Subject="CN=crm-batch,O=Acme";URI=spiffe://mesh/ns/jobs',
            Certificate(("spiffe://mesh/ns/jobs", "crm-batch", "CN=crm-batch,O=Acme"), DIGEST),
        ),
        (
            f'hash={DIGEST};subject="";uri=spiffe://mesh/a;dns=a.example;dns=b.example',
            Certificate(("spiffe://mesh/a", "a.example", "b.example"), DIGEST),
        ),
        ("Subject=CN", Certificate(("CN",))),
        # the element of the proxy that speaks to us is the last
        ('Subject="CN=first", Subject="CN=last"', Certificate(("last", "CN=last"))),
        ('Subject="CN=a,b;c=d";Hash=00', Certificate(("a", "CN=a,b;c=d"), "00")),
        ('Subject="CN=say \\"hi\\"";Hash=00', Certificate(('say "hi"', 'CN=say "hi"'), "00")),
        (f"Hash={DIGEST}", Certificate((), DIGEST)),
        ('Subject="CN=one";Subject="CN=two"', None),
        ('Subject="CN=open', None),
        ("nonsense", None),
        ("", None),
        ('Subject="CN=first",', None),
        ("By=spiffe://mesh/ns/crm", None),
    ],
)
def test_envoys_header_is_read(value: str, expected: Certificate | None) -> None:
    assert from_xfcc(value) == expected
    assert from_header("x-forwarded-client-cert", value) == expected


def test_another_header_holds_a_subject() -> None:
    assert from_header("ssl-client-subject-dn", "CN=crm-batch") == Certificate(("crm-batch", "CN=crm-batch"))
    assert from_header("ssl-client-subject-dn", " ") is None


@given(
    st.text(max_size=60)
    | st.text(alphabet='",;=\\ CN', max_size=60)
    | st.sampled_from(['Subject="CN=admin', 'Subject="CN=admin\\', 'Hash=1;Subject="CN=admin";URI="'])
)
def test_nothing_a_caller_writes_before_the_proxys_element_counts(forged: str) -> None:
    own = f'By=spiffe://mesh/crm;Hash={DIGEST};Subject="CN=real,O=\\"A, B;C\\"";URI=spiffe://mesh/real'
    assert from_xfcc(f"{forged},{own}") == from_xfcc(own)
    assert from_xfcc(own) is not None


@given(st.text(max_size=80))
def test_any_text_gets_an_answer(text: str) -> None:
    from_subject(text)
    from_xfcc(text)
    from_xfcc(f'Subject="{text}"')
