"""QEMU's own reasons (`blocked-reasons` of query-migrate), word for word, with advice where we know the text."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.errors import Blocker

_VFIO = "vfio"
#: Pieces of QEMU's texts in lower case -> what to do. The first that is found counts.
#: Source: migrate_add_blocker calls of QEMU 7.2 and 10.0.
ADVICE = (
    (_VFIO, "detach the physical device or VF from the guest before the migration, or use a virtio device"),
    ("vhost-user", "use a vhost-user back-end that logs dirty memory (VHOST_F_LOG_ALL, LOG_SHMFD)"),
    ("log_shmfd", "use a vhost-user back-end that logs dirty memory (VHOST_F_LOG_ALL, LOG_SHMFD)"),
    ("vhost", "use a vhost back-end with VHOST_F_LOG_ALL, or the virtio I/O path"),
    ("9p", "unmount the shared directory in the guest"),
    ("virtfs", "unmount the shared directory in the guest"),
    ("virtio-fs", "unmount the shared directory in the guest"),
    ("ivshmem", "restart the guest without the shared-memory device"),
    ("invtsc", 'restart the guest with cpu = "MODEL,-invtsc" in its file, or with a fixed TSC frequency'),
    ("invariant tsc", 'restart the guest with cpu = "MODEL,-invtsc" in its file, or with a fixed TSC frequency'),
    ("sev", "an encrypted guest cannot be moved by this QEMU: stop it and start it on the other host"),
    ("nested", "end the guests that run inside the guest, or restart it without svm and vmx in its CPU"),
    ("vpc", "convert the image to qcow2 or raw"),
    ("vmdk", "convert the image to qcow2 or raw"),
    ("vdi", "convert the image to qcow2 or raw"),
    ("vhdx", "convert the image to qcow2 or raw"),
    ("qcow format", "convert the image to qcow2 or raw"),
    ("vvfat", "use an image in qcow2 or raw format instead of a host directory"),
    ("postcopy", "wait for the end of the migration that runs: `vmferry watch`"),
    ("replay", "restart the guest without record/replay"),
    ("usb", "detach the host's USB device from the guest"),
    ("smartcard", "detach the host's smart card from the guest"),
    ("pr-manager", "end the persistent reservation in the guest"),
)

FALLBACK = "remove what QEMU names from the guest and try again; the text is QEMU's own"


def check_blocked_reasons(case: Case) -> Iterator[Blocker]:
    """QEMU at the source has no reason of its own against a migration."""
    for reason in case.runtime.blocked_reasons:
        if _VFIO in reason.lower() and (case.runtime.attached or case.runtime.functions):  # told as such, or let go
            continue
        yield Blocker(
            "qemu.blocked",
            f"QEMU on {case.source.name} does not let guest {case.guest.spec.name} migrate: {reason!r}",
            _advice(reason),
        )


def _advice(reason: str) -> str:
    lower = reason.lower()
    return next((advice for text, advice in ADVICE if text in lower), FALLBACK)
