"""An action says what was done, whatever framework wrote the route."""

import pytest

from otel_audit._otlp_rules import Call, Calls, Exclusion, Said, call_of, http_action, path_of_target, path_of_url

ROUTES = [
    ("GET", "/customers/{id}", "read"),
    ("GET", "/customers/{id:int}", "read"),
    ("GET", "/customers/<int:id>", "read"),
    ("GET", "/customers/<id>/", "read"),
    ("GET", "/customers/:id", "read"),
    ("GET", "/customers/:id(.:format)", "read"),
    ("GET", "/customers(.:format)", "list"),
    ("GET", "/customers/(?P<id>[0-9]+)", "read"),
    ("GET", "^customers/(?P<id>[^/]+)/$", "read"),
    ("GET", "^customers/$", "list"),
    ("GET", "customers/<int:id>", "read"),
    ("GET", "/files/*", "read"),
    ("GET", "/files/{path:path}", "read"),
    ("GET", "/{proxy+}", "read"),
    ("GET", "/customers", "list"),
    ("GET", "/customers/{id}/notes", "list"),
    ("GET", "/", "read"),
    ("GET", "/users/me", "read"),
    ("GET", "/openapi.json", "read"),
    ("get", "/customers", "list"),
    ("POST", "/customers", "create"),
    ("PUT", "/customers/{id}", "update"),
    ("PATCH", "/customers/{id}", "update"),
    ("DELETE", "/customers/{id}", "delete"),
    ("HEAD", "/customers", "read"),
    ("OPTIONS", "/customers", "options"),
    ("_OTHER", "/customers", "other"),
    ("PROPFIND", "/customers/search", "other"),
    ("GET", "/customers/search", "search"),
    ("POST", "/customers/import", "import"),
    ("GET", "/customers/export", "export"),
    ("POST", "/login", "login"),
    ("POST", "/auth/sign-in", "login"),
    ("POST", "/customers/{id}/merge", "merge"),
    ("POST", "/customers/{id}/Archive", "archive"),
    ("POST", "/v1/customers/{id}:archive", "archive"),
    ("POST", "/v1/customers:search", "search"),
    ("POST", "/login/{provider}", "login"),
    ("GET", "/export/{format}", "export"),
    ("GET", "/archive/{id}", "read"),
    ("DELETE", "/customers/{id}/archive", "delete"),
    ("DELETE", "/archive/{id}", "delete"),
    ("HEAD", "/customers/export", "read"),
]


@pytest.mark.parametrize(("method", "route", "action"), ROUTES)
def test_action_of_a_route(method: str, route: str, action: str) -> None:
    assert http_action(method, route, templated=True) == action


@pytest.mark.parametrize(
    ("path", "action"),
    [
        ("/customers/7", "read"),
        ("/customers/6f9619ff-8b86-d011-b42d-00c04fc964ff", "read"),
        ("/customers/507f1f77bcf86cd799439011", "read"),
        ("/customers/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read"),
        ("/customers/cus_9s6XKzkNRiz8", "read"),
        ("/customers/ann%40example.org", "read"),
        ("/customers/ann@example.org", "read"),
        ("/customers", "list"),
        ("/api/v2", "list"),
        ("/customers/7/notes", "list"),
        ("/customers/search", "search"),
        ("/", "read"),
        ("", "read"),
        (None, "read"),
    ],
)
def test_action_of_a_bare_path(path: str | None, action: str) -> None:
    assert http_action("GET", path, templated=False) == action


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a?b#c", "/a"),
        ("/a#b", "/a"),
        ("*", "*"),
        ("http://h/a?b", "/a"),
        ("http://h", "/"),
        ("/a?u=http://h/b", "/a"),
    ],
)
def test_path_of_a_request_target(target: str, path: str) -> None:
    assert path_of_target(target) == path


@pytest.mark.parametrize("route", ["*", "/*", "/**"])
def test_a_route_that_takes_whatever_comes_leaves_the_action_to_the_path(route: str) -> None:
    call = call_of(Said(method="GET", route=route), Exclusion([]))
    assert (call.action, call.by_path, call.route) == (None, True, route)
    call = call_of(Said(method="GET", route=f"/contacts{route}"), Exclusion([]))
    assert (call.action, call.by_path) == ("read", False)


@pytest.mark.parametrize(
    ("url", "path"),
    [("http://h/a/b?c#d", "/a/b"), ("https://h:1?c", "/"), ("/a?b", "/a"), ("file:///etc", "/etc"), ("h/a", "h/a")],
)
def test_path_of_a_url(url: str, path: str) -> None:
    assert path_of_url(url) == path


def test_an_exclusion_by_glob_needs_a_plain_path_or_a_route() -> None:
    exclusion = Exclusion(["/internal/*"])
    assert exclusion.of_path("/internal/a", None)
    assert not exclusion.of_path("/internal/a", "/{x}")
    for path in ("/internal/..", "/internal/./a", "/internal/%2e", "/internal//a", "/internal/a;b", "/internal\\a"):
        assert not exclusion.of_path(path, None), path


def test_calls_are_remembered_within_bounds() -> None:
    calls = Calls(Exclusion([]))
    by_method = calls.of_shape(("method", "route"))
    first = by_method["GET", "/a"]
    assert by_method["GET", "/a"] == first
    assert calls[first] == call_of(Said(method="GET", route="/a"), Exclusion([]))
    before = len(by_method)
    long = by_method["GET", "x" * 5000]
    assert isinstance(calls[long], Call)
    assert len(by_method) == before, "long text is not remembered"
    for n in range(Calls.ENTRIES_MAX + 100):
        _ = by_method["GET", str(n)]
    assert calls.full
    assert len(by_method) <= Calls.ENTRIES_MAX
