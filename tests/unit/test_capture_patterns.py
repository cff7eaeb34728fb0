"""Globs mean what they look like, and no text makes them slow."""

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_audit.capture._patterns import Glob, RoutePattern

TEXT = st.text(alphabet="ab/.?*[{}\n", max_size=12)


@given(TEXT, TEXT)
@example("*", "")
@example("a*b*a", "abba")
@example("**", "x")
@example("a**b", "ab")
@example("?", "\n")
def test_a_glob_matches_what_fnmatch_matches(pattern: str, text: str) -> None:
    """All but sets in brackets, which a glob here does not have."""
    as_fnmatch = pattern.replace("[", "[[]")
    assert Glob(pattern).matches(text) is fnmatchcase(text, as_fnmatch)


@pytest.mark.parametrize(
    ("pattern", "route", "matches"),
    [
        ("/contacts/{id}", "/contacts/{contact_id}", True),
        ("/contacts/{id}", "/contacts/<int:cid>", True),
        ("/contacts/{id}", "contacts/<int:cid>", True),
        ("contacts/<id>", "/contacts/{x}", True),
        ("/contacts/{id}", r"/contacts/{id:\d+}", True),
        ("/contacts/{id}/", r"^contacts/(?P<id>[0-9]+)/$", True),
        ("/contacts/{id}", r"/contacts/([0-9]+)", True),
        ("/contacts/{id}", r"^contacts/(\d+)\Z", True),
        ("/contacts/{id}", "/contacts", False),
        ("/contacts/{id}", "/contacts/{id}/notes", False),
        ("/contacts/{id}", "/contacts/me", False),
        ("/contacts/*", "/contacts/{id}/notes", True),
        ("/contacts*", "/contacts", True),
        ("*/notes", "/contacts/{id}/notes", True),
        ("*", "/", True),
        ("/a.c", "/abc", False),
        ("/v?/x", "/v1/x", True),
        ("/files/{name:path}", "/files/{name:path}", True),
    ],
)
def test_a_placeholder_of_a_route_matches_one_of_any_name_and_kind(pattern: str, route: str, matches: bool) -> None:
    assert RoutePattern(pattern).matches_route(route) is matches


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/contacts/{id}", "/contacts/7", True),
        ("/contacts/{id}", "/contacts/7/", True),
        ("/contacts/{id}", "/contacts/", False),
        ("/contacts/{id}", "/contacts/7/notes", False),
        ("/contacts/{id}/notes", "/contacts/a-b/notes", True),
        ("/contacts/<int:id>/notes", "/contacts/7/notes", True),
        ("/contacts/{a}/{b}", "/contacts/1/2", True),
        ("/x-{a}-y", "/x-7-y", True),
        ("/files/{name:path}", "/files/a/b/c", True),
        ("/files/<path:name>/raw", "/files/a/b/raw", True),
        ("/payments/*", "/payments/7/a", True),
        ("/payments/*", "/payments", False),
        ("/payments", "/payments/", True),
        ("*", "/anything", True),
        ("/a{id}b*c", "/axxbzzc", True),
    ],
)
def test_a_placeholder_of_a_route_matches_one_segment_of_a_path(pattern: str, path: str, matches: bool) -> None:
    assert RoutePattern(pattern).matches_path(path) is matches


@given(st.lists(st.sampled_from(["a", "b", "{x}", "*", "/", "ab"]), max_size=6), st.text("ab/", max_size=10))
def test_placeholders_match_as_the_plain_regular_expression_does(parts: list[str], text: str) -> None:
    """The same as without atomic groups, which are there for speed alone."""
    pattern, path = "/" + "".join(parts), "/" + text
    plain = pattern if pattern.endswith("*") else pattern + "/?"
    regex = re.escape(plain).replace(r"/\?", "/?") if plain != pattern else re.escape(plain)
    regex = regex.replace(r"\{x\}", "[^/]+").replace(r"\*", ".*")
    assert RoutePattern(pattern).matches_path(path) is (re.fullmatch(regex, path, re.DOTALL) is not None)


def test_no_text_makes_a_pattern_slow() -> None:
    """With backtracking these take longer than the age of the universe."""
    assert not Glob("*a" * 30 + "b").matches("a" * 20_000)
    assert not RoutePattern("/" + "*{x}/" * 20 + "b").matches_path("/" + "a/" * 2_000)
    assert not RoutePattern("/" + "{x}" * 8 + "b").matches_path("/" + "a" * 200)
