"""Everything that can go wrong, as a tree.

    VmferryError
    ├── BadInput            what was asked for makes no sense; nothing was touched
    │   └── NotFound        no such guest, host, hand-over
    ├── Blocked             blockers were found; nothing was touched
    ├── Denied              no certificate, a wrong one, or not the role for this
    ├── GuestBusy           somebody else holds the guest's operation
    ├── Refused             a peer said no
    ├── Broken              a link, process or device failed
    │   └── Unreachable     nobody answers there
    ├── TimedOut            it took longer than allowed
    ├── InDoubt             who owns the guest is not known; nobody runs it until it is
    └── IllegalTransition   our bug: an event that the table does not know; the state did not move

Each has a stable `code`, typed attributes, `side`, `owner` (where the guest runs now), `retry` and `fix`;
the text is made from them. The same attributes become the HTTP problem body and the exit code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Blocker:
    """A reason why a guest cannot move, with its fix."""

    code: str  #: stable, e.g. "cpu.features-missing"
    what: str  #: one sentence: what blocks, on which object, seen against expected
    fix: str  #: one sentence: what to do about it


@dataclass
class VmferryError(Exception):
    """Base of all errors that a user can see.

    Args:
        what: what failed, on which object, seen against expected with units.
        owner: the host on which the guest runs now; None where no guest is concerned.
        fix: what to do.
        side: "source", "destination" or None.
        retry: whether the same call may succeed later without a change.
    """

    what: str
    owner: str | None = None
    fix: str | None = None
    side: str | None = None
    retry: bool = False

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __str__(self) -> str:
        """Return *what failed; where the guest runs; what to do*."""
        parts = [self.what]
        if self.owner is not None:
            parts.append(f"guest runs on {self.owner}")
        if self.fix is not None:
            parts.append(self.fix)
        return "; ".join(parts)

    def problem(self) -> dict[str, object]:
        """Return the HTTP problem body: the same attributes by name."""
        return {
            "code": self.code,
            "what": self.what,
            "owner": self.owner,
            "fix": self.fix,
            "side": self.side,
            "retry": self.retry,
        }


@dataclass
class BadInput(VmferryError):
    """What was asked for makes no sense; nothing was touched."""

    code: ClassVar[str] = "bad-input"
    exit_code: ClassVar[int] = 2
    http_status: ClassVar[int] = 400


@dataclass
class NotFound(BadInput):
    """No guest, host or hand-over of that name."""

    code: ClassVar[str] = "not-found"
    http_status: ClassVar[int] = 404


@dataclass
class Blocked(VmferryError):
    """The guest cannot move; nothing was touched. Carries every blocker at once."""

    blockers: tuple[Blocker, ...] = field(default=())

    code: ClassVar[str] = "blocked"
    exit_code: ClassVar[int] = 3
    http_status: ClassVar[int] = 409

    def problem(self) -> dict[str, object]:
        """Return the problem body with the list of blockers."""
        rows = [{"code": b.code, "what": b.what, "fix": b.fix} for b in self.blockers]
        return {**VmferryError.problem(self), "blockers": rows}


@dataclass
class Denied(VmferryError):
    """No certificate, one that is not (or no longer) known, or not the role for this."""

    code: ClassVar[str] = "denied"
    exit_code: ClassVar[int] = 4
    http_status: ClassVar[int] = 403


@dataclass
class GuestBusy(VmferryError):
    """Somebody else holds the guest's operation; nothing was touched."""

    code: ClassVar[str] = "guest-busy"
    exit_code: ClassVar[int] = 5
    http_status: ClassVar[int] = 409


@dataclass
class Refused(VmferryError):
    """A peer said no."""

    code: ClassVar[str] = "refused"
    exit_code: ClassVar[int] = 6
    http_status: ClassVar[int] = 409


@dataclass
class Broken(VmferryError):
    """A link, process or device failed."""

    code: ClassVar[str] = "broken"
    exit_code: ClassVar[int] = 7
    http_status: ClassVar[int] = 502


@dataclass
class Unreachable(Broken):
    """Nobody answers at the host's address."""

    code: ClassVar[str] = "unreachable"
    http_status: ClassVar[int] = 504


@dataclass
class TimedOut(VmferryError):
    """It took longer than allowed."""

    code: ClassVar[str] = "timed-out"
    exit_code: ClassVar[int] = 8
    http_status: ClassVar[int] = 504


@dataclass
class InDoubt(VmferryError):
    """Who owns the guest is not known; it is held until that is certain."""

    code: ClassVar[str] = "in-doubt"
    exit_code: ClassVar[int] = 9
    http_status: ClassVar[int] = 409


@dataclass
class IllegalTransition(VmferryError):
    """An event that the table does not know in this state: our bug; the state did not move."""

    code: ClassVar[str] = "illegal-transition"
    exit_code: ClassVar[int] = 70
