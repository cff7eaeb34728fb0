"""Who may do what: API keys, Basic and bearer tokens; roles; an allowance of calls for each account."""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException

TOKEN_LIFETIME_S = 3600
_TOKEN_SECRET = secrets.token_bytes(32)  # tokens end with the process
_spending = threading.Lock()


@dataclass
class Account:
    """Somebody who may call the API.

    Args:
        id: its login name.
        secret_sha256: SHA-256 of its API key or password, hex digits.
        roles: what it may do: read, write, delete, export, report.
        calls_per_s: its allowance; two seconds' worth may be used at once.
    """

    id: str
    secret_sha256: str
    roles: frozenset[str]
    calls_per_s: float = 100.0
    left: float = field(default=0.0, repr=False)
    left_at_s: float = field(default=0.0, repr=False)

    def spend(self) -> None:
        """Count one call; 429 when the allowance is used up."""
        with _spending:
            now = time.monotonic()
            self.left = min(self.calls_per_s * 2, self.left + (now - self.left_at_s) * self.calls_per_s)
            self.left_at_s = now
            if self.left < 1:
                raise HTTPException(429, "too many calls", {"Retry-After": "1"})
            self.left -= 1


def _load() -> dict[str, Account]:
    entries = json.loads((Path(__file__).parent / "accounts.json").read_text())
    return {e["id"]: Account(**{**e, "roles": frozenset(e["roles"])}) for e in entries}


ACCOUNTS = _load()
_BY_SECRET = {a.secret_sha256: a for a in ACCOUNTS.values()}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _unauthorized(detail: str) -> HTTPException:
    return HTTPException(401, detail, {"WWW-Authenticate": 'Bearer, Basic realm="crm"'})


def check_password(account_id: str, password: str) -> Account:
    """The account with this password; 401 when there is none."""
    account = ACCOUNTS.get(account_id)
    if account is None or not hmac.compare_digest(account.secret_sha256, _digest(password)):
        raise _unauthorized("wrong name or password")
    return account


def _encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def _sign(text: str) -> str:
    return _encode(hmac.new(_TOKEN_SECRET, text.encode(), hashlib.sha256).digest())


def issue_token(subject: str, client: str) -> str:
    """A JWT for `subject`, who uses the program `client`."""
    claims = {"iss": "crm", "sub": subject, "azp": client, "exp": int(time.time()) + TOKEN_LIFETIME_S}
    text = f"{_encode(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{_encode(json.dumps(claims).encode())}"
    return f"{text}.{_sign(text)}"


def _claims(token: str) -> dict[str, Any]:
    text, _, signature = token.rpartition(".")
    if not text or not hmac.compare_digest(signature, _sign(text)):
        raise _unauthorized("invalid token")
    payload = text.rpartition(".")[2]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    if claims["exp"] < time.time():
        raise _unauthorized("token has expired")
    return claims


def _from_header(authorization: str) -> tuple[Account, Account]:
    """The program and the person (or again the program) that an Authorization header names."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        claims = _claims(value)
        try:
            return ACCOUNTS[claims["azp"]], ACCOUNTS[claims["sub"]]
        except KeyError as e:
            raise _unauthorized("no such account") from e
    if scheme.lower() == "basic":
        try:
            name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError) as e:
            raise _unauthorized("not Basic credentials") from e
        account = check_password(name, password)
        return account, account
    raise _unauthorized("unknown scheme")


def caller(
    x_api_key: Annotated[str | None, Header()] = None, authorization: Annotated[str | None, Header()] = None
) -> Account:
    """Whose rights count for this call: the person's, else the program's; 401 or 429 otherwise."""
    program = person = None
    if authorization is not None:
        program, person = _from_header(authorization)
    if x_api_key is not None:
        program = _BY_SECRET.get(_digest(x_api_key))
        if program is None:
            raise _unauthorized("unknown API key")
    if program is None:
        raise _unauthorized("no credentials")
    program.spend()
    return person or program


def may(role: str) -> Callable[..., Account]:
    """A dependency: the caller, who must have `role`; 403 otherwise."""

    def check(account: Annotated[Account, Depends(caller)]) -> Account:
        if role not in account.roles:
            raise HTTPException(403, f"{account.id} may not {role}")
        return account

    return check
