"""A Django service that installs auditing itself, for WSGI; `settings` are those of `django_app`."""

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "django_settings"

import otel_audit

otel_audit.install()

from opentelemetry.instrumentation.django import DjangoInstrumentor

DjangoInstrumentor().instrument()

from django_app import application, asgi

__all__ = ["application", "asgi"]
