"""A Django service that knows nothing of auditing, for WSGI (`application`) and ASGI (`asgi`)."""

import os
import time
from collections.abc import Iterator

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_settings")

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from django.views.decorators.http import require_http_methods


@require_http_methods(["GET", "HEAD"])
def read_thing(request: HttpRequest, thing_id: int) -> HttpResponse:
    return JsonResponse({"id": thing_id})


def create_thing(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=201)


def refused(request: HttpRequest) -> HttpResponse:
    return HttpResponseForbidden()


def broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("out of order")


def _chunks() -> Iterator[bytes]:
    for _ in range(3):
        yield b"chunk"
        time.sleep(0.1)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(_chunks())


urlpatterns = [
    path("things/<int:thing_id>", read_thing),
    path("things", create_thing),
    path("refused", refused),
    path("broken", broken),
    path("stream", stream),
    path("sub/", include([path("items/<int:thing_id>", read_thing)])),
]

application = get_wsgi_application()
asgi = get_asgi_application()
