"""Capture: runs inside the audited service; standard library and OpenTelemetry only."""
