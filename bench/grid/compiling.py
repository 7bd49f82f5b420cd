"""The stock Debian guest with a compiler at work: a disk that holds a Debian with gcc, and the orders to use it.

The compiler is not part of the stock guest: it lies on a second disk, on which the guest changes root. Sources are our
own workload's; what is compiled lands in a tmpfs of the guest, and so does a line per compiled file, which is the work
that is counted.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vmferry.core.units import MIB
from vmferry.lab.guests.cache import built_once
from vmferry.lab.guests.ext4 import make_ext4
from vmferry.lab.guests.sources import WORKLOAD
from vmferry.lab.toolchain import machine_codename, machine_mirror
from vmferry.lab.toolchain.command import output_of

PACKAGES = ("gcc", "libc6-dev")
_DISK_BYTES = 1024 * MIB
_UUID = "766d6665-7272-7900-0000-000000000002"
_ROOT = "/mnt"
_SCRATCH = f"{_ROOT}/tmp"  # noqa: S108  (the guest's own)
_COUNT = f"{_SCRATCH}/done"
#: Compiles every source for ever.
_LOOP = """\
#!/bin/sh
cd /src
while :; do
  for file in *.c; do
    gcc -O0 -c "$file" -o /tmp/out.o && echo >> /tmp/done
  done
done
"""

#: What is typed at the guest's console, in order; each ends with a line of output.
START = (
    f"mount -o ro /dev/disk/by-label/compiler {_ROOT} && echo mounted",
    f"mount -t tmpfs none {_SCRATCH} && touch {_COUNT} && echo ready",
    f"(setsid chroot {_ROOT} sh /src/loop > /dev/null 2>&1 < /dev/null &); echo started",
)
#: Prints how many files were compiled.
PROGRESS = f"stat -c %s {_COUNT}"


def compiler_disk(cache: Path) -> Path:
    """Return the disk with the compiler, made at the first use; nobody writes to it.

    Raises:
        Broken: debootstrap is missing or fails, or there is no space.
    """
    folder = cache / "bench" / f"compiler-{machine_codename()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        built_once(folder, _make)
    return folder / "disk.qcow2"


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".compiler.") as name:
        tree, raw = Path(name) / "root", Path(name) / "disk.raw"
        print("debootstrap with a compiler: about two minutes", flush=True)
        what = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        output_of(
            ["debootstrap", *what, machine_codename(), str(tree), machine_mirror()],
            env={"DEBIAN_FRONTEND": "noninteractive"},
            fix="run as root, with debootstrap installed",
        )
        shutil.rmtree(tree / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)
        (tree / "src").mkdir()
        for file in (*WORKLOAD.glob("*.c"), *WORKLOAD.glob("*.h")):
            shutil.copy(file, tree / "src")
        (tree / "src/loop").write_text(_LOOP, "utf-8")
        make_ext4(tree, raw, size=_DISK_BYTES, uuid=_UUID, label="compiler")
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(folder / "disk.qcow2")]
        output_of(convert, fix="free 3 GiB in the cache directory")
    (folder / "disk.qcow2").chmod(0o644)
