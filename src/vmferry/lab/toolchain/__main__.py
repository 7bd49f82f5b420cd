"""`python -m vmferry.lab.toolchain` makes sure that both QEMU versions can run, and says what it does."""

import sys

from vmferry.core.errors import VmferryError
from vmferry.lab.toolchain.qemu import QemuBinary, ensure_qemus, find_qemus


def describe(binary: QemuBinary) -> str:
    """Return one line for a person: version, where it is and whether it was unpacked."""
    version = ".".join(map(str, binary.version))
    origin = "unpacked" if binary.unpacked else "installed"
    return f"QEMU {version:<7} {origin}: {binary.argv[0]}"


def main(arguments: list[str]) -> int:
    """Run `ensure` (the default) or `list`; return the exit code."""
    command = arguments[0] if arguments else "ensure"
    if command not in {"ensure", "list"} or len(arguments) > 1:
        print("usage: python -m vmferry.lab.toolchain [ensure|list]", file=sys.stderr)
        return 2
    try:
        if command == "ensure":
            ensure_qemus(say=lambda line: print(f"run: {line}", file=sys.stderr))
        else:
            for binary in find_qemus():
                print(describe(binary))
    except VmferryError as error:
        print(f"run: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
