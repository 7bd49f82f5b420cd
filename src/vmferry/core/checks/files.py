"""When two hosts mean the same file, and what the file system under it says.

`FileFacts.identity` is `FSTYPE:REST`. For a file system that only one kernel can mount, REST names that kernel (its
boot id), so that equal text proves one machine. A side that does not know writes `unknown:` and the reason.
"""

from __future__ import annotations

import re

from vmferry.core.host import FileFacts

UNKNOWN = "unknown"
_FS_TYPE = re.compile(r"^[A-Za-z0-9_.-]+")

#: Shared between kernels, with locks that reach the server.
NFS4 = frozenset({"nfs4"})
#: Mounted by one kernel at a time: equal identities mean one kernel, and its file locks hold between its processes.
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "overlayfs", "f2fs"})


def file_system(file: FileFacts) -> str:
    """Return the file system type in lower case, `unknown` when the host does not know it."""
    found = _FS_TYPE.match(file.identity)
    return found.group().lower() if found else UNKNOWN


def is_same_file(here: FileFacts, there: FileFacts) -> bool:
    """Tell whether both hosts certainly mean one file; two times "I do not know" is not one file."""
    return file_system(here) != UNKNOWN and here.identity == there.identity
