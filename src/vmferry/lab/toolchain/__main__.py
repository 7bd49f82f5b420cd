"""`python -m vmferry.lab.toolchain` makes sure that both QEMU versions can run, and says what it does.

`ensure libvirt` makes sure of the newer libvirt, which only tests and benches want.
"""

import sys

from vmferry.core.errors import VmferryError
from vmferry.lab.toolchain.libvirt import LibvirtBuild, ensure_libvirt, find_libvirts
from vmferry.lab.toolchain.qemu import QemuBinary, ensure_qemus, find_qemus


def describe(binary: QemuBinary) -> str:
    """Return one line for a person: version, where it is and whether it was unpacked."""
    version = ".".join(map(str, binary.version))
    origin = "unpacked" if binary.unpacked else "installed"
    return f"QEMU {version:<7} {origin}: {binary.argv[0]}"


def describe_libvirt(build: LibvirtBuild) -> str:
    """Return such a line for a libvirt."""
    version = ".".join(map(str, build.version))
    return f"libvirt {version}: {build.root or 'installed'}"


def main(arguments: list[str]) -> int:
    """Run `ensure` (the default), `ensure libvirt` or `list`; return the exit code."""
    try:
        match arguments:
            case [] | ["ensure"]:
                ensure_qemus(say=_say)
            case ["ensure", "libvirt"]:
                ensure_libvirt(say=_say)
            case ["list"]:
                for line in (*map(describe, find_qemus()), *map(describe_libvirt, find_libvirts())):
                    print(line)
            case _:
                print("usage: python -m vmferry.lab.toolchain [ensure [libvirt]|list]", file=sys.stderr)
                return 2
    except VmferryError as error:
        _say(str(error))
        return error.exit_code
    return 0


def _say(line: str) -> None:
    print(f"run: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
