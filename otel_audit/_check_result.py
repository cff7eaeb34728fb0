"""The outcome of `otel-audit check`."""

from dataclasses import dataclass, field
from typing import Any

from otel_audit._check_run import Ran

__all__ = ["Finding", "Result"]


@dataclass(frozen=True)
class Finding:
    """Something that stands in the way, or that is good to know.

    Args:
        id: stable, for machines.
        what: is the case.
        remedy: what to do about it; may be empty.
    """

    id: str
    what: str
    remedy: str = ""


@dataclass
class Result:
    """The outcome of a check; `as_dict` is what `--json` prints."""

    command: list[str]
    ran: Ran
    process: dict[str, Any] = field(default_factory=dict)
    """What the process that serves found; empty if capture was loaded in none."""
    destination: dict[str, Any] | None = None
    problems: list[Finding] = field(default_factory=list)
    notices: list[Finding] = field(default_factory=list)

    @property
    def audited(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems

    def problem(self, of: str, what: str, remedy: str = "") -> None:
        """Note what stands in the way."""
        found = Finding(of, what, remedy)
        if found not in self.problems:
            self.problems.append(found)

    def notice(self, of: str, what: str, remedy: str = "") -> None:
        """Note what is good to know."""
        found = Finding(of, what, remedy)
        if found not in self.notices:
            self.notices.append(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "verdict": "audited" if self.audited else "not audited",
            "problems": [vars(p) for p in self.problems],
            "notices": [vars(n) for n in self.notices],
            "command": self.command,
            "exit_code": self.ran.exit_code,
            "listens": self.ran.listens,
            "destination": self.destination,
            "calls": [
                {
                    "url": c.url,
                    "status": c.status,
                    "problem": c.problem,
                    "record": None if c.record is None else c.record.attributes,
                }
                for c in self.ran.calls
            ],
            "process": self.process,
        }
