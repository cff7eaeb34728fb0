"""Seven programs that use the CRM, each in its own way, one of them badly.

`python -m crm.traffic --url http://127.0.0.1:8000 --seconds 15` from the folder above. Each program draws from a random
generator of its own: with the same seed each makes the same choices, and only how they interleave is up to the clock.
Addresses are from the ranges for documentation (RFC 5737, RFC 3849), as a reverse proxy in front of the CRM would report
them.
"""

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

CONTACTS, COMPANIES, DEALS = 400, 40, 120
WORDS = ("amara", "becker", "chen", "dubois", "falcon", "garcia", "kim", "willow", "works", "labs")


@dataclass(frozen=True)
class Call:
    """A call that was answered, or that failed for lack of an answer.

    Args:
        program: whose it was.
        method: HTTP method.
        path: path and query.
        status: HTTP status; None when no answer came.
        seconds: how long it took.
    """

    program: str
    method: str
    path: str
    status: int | None
    seconds: float


@dataclass
class Tally:
    """What a run came to."""

    calls: int = 0
    unanswered: int = 0
    by_program: Counter[str] = field(default_factory=Counter)
    by_status: Counter[int] = field(default_factory=Counter)

    def add(self, call: Call) -> None:
        """Count `call`."""
        if call.status is None:
            self.unanswered += 1
            return
        self.calls += 1
        self.by_program[call.program] += 1
        self.by_status[call.status] += 1


class Over(Exception):  # noqa: N818 - the end is no error
    """The run is over."""


@dataclass(kw_only=True)
class Program:
    """What every program does: call, wait, and stop in time.

    Args:
        name: for reports.
        client: connection to the CRM.
        rng: its own source of chance.
        addresses: where it calls from.
        until: moment at which it stops, by `time.monotonic`.
        left: how many calls it may still make.
        on_call: told of each call.
        headers: sent with each call.
    """

    name: str
    client: httpx.AsyncClient
    rng: random.Random
    addresses: tuple[str, ...]
    until: float
    left: int
    on_call: Callable[[Call], None]
    headers: dict[str, str] = field(default_factory=dict)

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """The JSON of a successful answer, else None."""
        if self.left <= 0 or time.monotonic() >= self.until:
            raise Over
        self.left -= 1
        headers = {"X-Forwarded-For": self.rng.choice(self.addresses), **self.headers, **headers}
        started = time.monotonic()
        try:
            try:
                response = await self.client.request(method, path, json=body, headers=headers)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # After an unhandled exception the server closes the connection without a word: the call never began.
                response = await self.client.request(method, path, json=body, headers=headers)
        except httpx.HTTPError:
            self.on_call(Call(self.name, method, path, None, time.monotonic() - started))
            return None
        self.on_call(Call(self.name, method, path, response.status_code, time.monotonic() - started))
        if not response.is_success or not response.content.startswith((b"{", b"[")):
            return None
        return response.json()

    async def pause(self, least_s: float, most_s: float) -> None:
        """Wait a while, but not beyond the end."""
        await asyncio.sleep(max(0.0, min(self.rng.uniform(least_s, most_s), self.until - time.monotonic())))

    async def log_in(self, name: str, password: str, client: str | None = None) -> str:
        """An Authorization header for this account."""
        answer = await self.call("POST", "/v2/login", {"name": name, "password": password, "client": client})
        return f"Bearer {(answer or {}).get('token', '')}"


async def nightly_sync(p: Program) -> None:
    """Pages through everything, then brings companies and contacts up to date; one address, an API key."""
    p.headers = {"X-API-Key": "sk-sync-7f3a91"}
    while True:
        for kind, pages in (("companies", 2), ("contacts", 8), ("deals", 3)):
            for page in range(1, pages + 1):
                await p.call("GET", f"/v2/{kind}?page={page}&size=50")
                await p.pause(0.02, 0.06)
        for _ in range(4):
            body = {"phone": f"+49 40 5550 {p.rng.randrange(9999):04d}"}
            await p.call("PATCH", f"/v2/contacts/{p.rng.randint(1, CONTACTS)}", body)
            await p.pause(0.02, 0.06)
        await p.pause(0.5, 1.0)


async def web_front_end(p: Program) -> None:
    """People at work: the program's key, and a token for each person."""
    p.headers = {"X-API-Key": "sk-web-c04d22"}
    tokens = [await p.log_in(name, f"{name}-pw", "web-01") for name in ("alice", "bob")]
    while True:
        who = {"Authorization": p.rng.choice(tokens)}
        found = await p.call("GET", f"/v2/contacts/search?q={p.rng.choice(WORDS)}", **who)
        await p.pause(0.05, 0.15)
        contact = p.rng.choice(found)["id"] if found else p.rng.randint(1, CONTACTS)
        await p.call("GET", f"/v2/contacts/{contact}", **who)
        await p.pause(0.1, 0.2)
        note = {
            "contact_id": contact,
            "kind": p.rng.choice(["call", "note", "meeting"]),
            "note": "spoke about the offer",
        }
        made = await p.call("POST", "/v2/activities", note, **who)
        if p.rng.random() < 0.4:
            deal = p.rng.randint(1, DEALS)
            await p.call("GET", f"/v2/deals/{deal}/forecast", **who)
            await p.call("PATCH", f"/v2/deals/{deal}", {"stage": p.rng.choice(["offer", "won", "lost"])}, **who)
        if made and p.rng.random() < 0.2:  # a slip; not everyone may undo it
            await p.call("DELETE", f"/v2/activities/{made.get('id', 0)}", **who)
        await p.pause(0.1, 0.4)


async def mobile_app(p: Program) -> None:
    """People on the road: tokens, IPv6, short visits, things that are gone meanwhile."""
    tokens = [await p.log_in(name, f"{name}-pw", "mobile-01") for name in ("carol", "dan")]
    while True:
        who = {"Authorization": p.rng.choice(tokens)}
        await p.call("GET", "/v2/activities?size=20", **who)
        for _ in range(p.rng.randint(1, 4)):
            await p.call("GET", f"/v2/contacts/{p.rng.randint(1, CONTACTS + 20)}", **who)
            await p.pause(0.05, 0.2)
        if p.rng.random() < 0.4:  # without a note: 422; dan may not write: 403
            note = p.rng.choice(["left a message", ""])
            body = {"contact_id": p.rng.randint(1, CONTACTS), "kind": "call", "note": note}
            await p.call("POST", "/v2/activities", body, **who)
        await p.pause(0.2, 0.6)


async def bi_export(p: Program) -> None:
    """Slow reports and whole exports; an API key."""
    p.headers = {"X-API-Key": "sk-bi-5d10fe"}
    while True:
        await p.call("GET", "/v2/reports/pipeline")
        await p.call("GET", "/v2/contacts/export")
        await p.pause(0.3, 0.8)


async def partner(p: Program) -> None:
    """Another company's system: Basic credentials, new leads, some of them unusable, rights it does not have."""
    credentials = base64.b64encode(b"partner-07:acme-partner-pw").decode()
    p.headers = {"Authorization": f"Basic {credentials}"}
    while True:
        number = p.rng.randrange(10**6)
        email = f"lead.{number}@acme.example" if p.rng.random() < 0.8 else "n/a"
        body = {"company_id": p.rng.randint(1, COMPANIES), "name": f"Lead {number}", "email": email}
        await p.call("POST", "/v2/contacts", body)
        await p.pause(0.1, 0.3)
        await p.call("GET", f"/v2/deals/{p.rng.randint(1, DEALS)}")
        if p.rng.random() < 0.1:
            await p.call("DELETE", f"/v2/deals/{p.rng.randint(1, DEALS)}")
        await p.pause(0.1, 0.4)


async def operations(p: Program) -> None:
    """A service account: watches, and clears away old activities."""
    p.headers = {"Authorization": await p.log_in("ops-01", "ops-service-pw")}
    while True:
        await p.call("GET", "/v2/health")
        await p.pause(0.4, 0.6)
        old = await p.call("GET", "/v2/activities?size=5")
        if isinstance(old, list) and len(old) == 5 and p.rng.random() < 0.5:
            await p.call("DELETE", f"/v2/activities/{old[0]['id']}")
        await p.pause(0.4, 0.6)


async def plug_in(p: Program) -> None:
    """The bad one: copies every contact in bursts, beyond its allowance; tries ids, exports and other people's keys."""
    own = {"X-API-Key": "sk-quick-e81f30"}
    p.headers = own
    contact = 1
    while True:
        for _ in range(p.rng.randint(10, 20)):
            await p.call("GET", f"/v2/contacts/{contact}")
            contact += 1
        await p.pause(0.8, 1.2)
        await p.call("GET", f"/v2/contacts/{p.rng.randint(10_000, 99_999)}")
        if p.rng.random() < 0.5:
            await p.call("GET", "/v2/contacts/export")
            await p.call("DELETE", f"/v2/contacts/{contact}")
        if p.rng.random() < 0.4:
            p.headers = {"X-API-Key": f"sk-web-{p.rng.randrange(3):06x}"}
            await p.call("GET", "/v2/contacts?size=200")
            p.headers = own
        await p.pause(0.3, 0.8)


PROGRAMS: tuple[tuple[Callable[[Program], Awaitable[None]], str, tuple[str, ...]], ...] = (
    (nightly_sync, "Nightly sync", ("192.0.2.10",)),
    (web_front_end, "Web front end", tuple(f"198.51.100.{n}" for n in (21, 22, 57, 58))),
    (mobile_app, "Mobile app", tuple(f"2001:db8:51::{n:x}" for n in (0x1A, 0x2B, 0x3C))),
    (bi_export, "BI export", ("192.0.2.50",)),
    (partner, "Acme partner", ("203.0.113.20",)),
    (operations, "Operations", ("192.0.2.5",)),
    (plug_in, "QuickLeads plug-in", tuple(f"203.0.113.{n}" for n in range(64, 96))),
)


async def drive(
    url: str,
    *,
    seconds: float = 15.0,
    calls_each: int = 10_000,
    seed: int = 1,
    on_call: Callable[[Call], None] = lambda _: None,
) -> Tally:
    """Run all programs against the CRM at `url`, for `seconds` and at most `calls_each` calls each."""
    tally = Tally()

    def note(call: Call) -> None:
        tally.add(call)
        on_call(call)

    # Servers close idle connections, many after 5 s; one that closes just as it is used again answers nothing.
    limits = httpx.Limits(keepalive_expiry=2.0)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as client:
        until = time.monotonic() + seconds

        async def run(habit: Callable[[Program], Awaitable[None]], name: str, addresses: tuple[str, ...]) -> None:
            rng = random.Random(f"{seed} {name}")
            try:
                program = Program(
                    name=name,
                    client=client,
                    rng=rng,
                    addresses=addresses,
                    until=until,
                    left=calls_each,
                    on_call=note,
                )
                await habit(program)
            except Over:
                return

        await asyncio.gather(*(run(*program) for program in PROGRAMS))
    return tally


def main() -> None:
    """Run from the command line, and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--calls-each", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    tally = asyncio.run(drive(wanted.url, seconds=wanted.seconds, calls_each=wanted.calls_each, seed=wanted.seed))
    print(json.dumps({"calls": tally.calls, "unanswered": tally.unanswered, "by_program": tally.by_program}, indent=2))
    sys.exit(tally.unanswered > 0)


if __name__ == "__main__":
    main()
