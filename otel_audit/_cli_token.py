"""The command `otel-audit token`: tokens for senders, and the hashes of tokens."""

import sys

import click

from otel_audit._cli_common import json_option, write_out
from otel_audit.errors import UsageError

__all__ = ["token"]


@click.command(short_help="Make a token for a sender, and its hash for the configuration.")
@click.option("--hash", "from_stdin", is_flag=True, help="Read a token from standard input, and print its hash alone.")
@json_option("Print one JSON object.")
def token(from_stdin: bool, as_json: bool) -> None:
    """Make a bearer token of 256 random bits for a sender, and print it with its SHA-256.

    The token goes to the sender, the hash into `token_sha256` of `receivers.otlp.senders`. Nothing is stored.
    """
    import json

    from otel_audit.senders import digest_of, new_token

    made = None if from_stdin else new_token()
    shown = {"token_sha256": digest_of(_given() if made is None else made)}
    if made is not None:
        shown = {"token": made, **shown}
    write_out(json.dumps(shown) if as_json else "\n".join(f"{name}: {value}" for name, value in shown.items()))


def _given() -> str:
    """The token on standard input."""
    from otel_audit.senders import TOKEN_CHARS_LEAST

    given = sys.stdin.read().strip()
    if not given.isascii() or not given.isprintable() or " " in given:
        raise UsageError("read token", "standard input", "a token is one word of ASCII", "otel-audit token makes one")
    if len(given) < TOKEN_CHARS_LEAST:
        reason = f"it is shorter than {TOKEN_CHARS_LEAST} characters, so whoever has its hash may guess it"
        raise UsageError("read token", "standard input", reason, "otel-audit token makes one")
    return given
