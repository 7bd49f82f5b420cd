"""libvirt's errors in our words: each sentence was said by a real libvirt 9.0 or 11.3 (test_real_errors.py)."""

from __future__ import annotations

import pytest

from vmferry.core.errors import Broken, Denied, Refused, TimedOut, Unreachable, VmferryError
from vmferry.libvirt.faults import translate

#: (libvirt's number, its sentence, what it is here, words of what to do)
SAID: list[tuple[int, str, type[VmferryError], str]] = [
    (9, "operation failed: domain 'web-7' already exists with uuid 61439e93", Refused, "rename or undefine"),
    (9, "operation failed: domain 'web-8' is already defined with uuid c93bee30", Refused, "rename or undefine"),
    (38, "Cannot access storage file '/srv/db.img': No such file or directory", Broken, "by the same path"),
    (38, "Cannot access storage file '/srv/db.img': Permission denied", Broken, "by the same path"),
    (55, "Requested operation is not valid: domain is not running", Refused, "look at the domain's state"),
    (78, "operation aborted: job 'migration out' canceled by client", Broken, "gave the job up"),
    (81, "Unsafe migration: Migration without shared storage is unsafe", Refused, "cache='none'"),
    (1, "internal error: client socket is closed", Unreachable, "libvirtd"),
    (29, "operation forbidden: read only access prevents virDomainMigratePerform3Params", Denied, "without read-only"),
    (9, "operation failed: migration out job: unexpectedly failed", Broken, "log of libvirtd"),
    (45, "authentication failed: authentication failed", Denied, "client certificate"),
    (45, "authentication failed: Failed to verify peer's certificate", Denied, "the name in the address"),
    (45, "authentication failed: Failed to start SASL negotiation: -4 (No worthy mechs found)", Denied, "a password"),
    (45, "authentication failed: No authentication callback available", Denied, "a password"),
    (68, "Timed out during operation: cannot acquire state change lock", TimedOut, "try again"),
]


@pytest.mark.parametrize(("code", "said", "kind", "fix"), SAID, ids=[said for _, said, _, _ in SAID])
def test_each_error_has_its_kind_and_its_fix(code: int, said: str, kind: type[VmferryError], fix: str) -> None:
    """What was asked and libvirt's own sentence stay in it."""
    error = translate(code, said, "move of domain web-7")
    assert type(error) is kind
    assert error.what == f"move of domain web-7: {said}"
    assert fix in str(error.fix)
