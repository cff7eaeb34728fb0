"""A gRPC service that installs auditing itself."""

import sys

from opentelemetry.instrumentation.grpc import GrpcInstrumentorServer

import otel_audit

otel_audit.install()
GrpcInstrumentorServer().instrument()

import grpc_app

if __name__ == "__main__":
    server = grpc_app.make(int(sys.argv[1]))
    server.start()
    server.wait_for_termination()
