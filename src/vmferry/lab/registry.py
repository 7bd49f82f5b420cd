"""Which labs exist on this machine, who owns each, and how a dead owner's lab is swept away.

A lab is claimed by one small file, `<base>/<id>.json`, written before anything of the lab exists; everything else
of the lab is found through its id. So a lab can be removed completely whatever killed its owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.lab.processes import Identity, find_lab_processes, identify, is_alive, kill_all


@dataclass(frozen=True, slots=True)
class Claim:
    """One lab: its id and its owner. Its directory holds the hosts' state, run and log files."""

    id: str
    owner: Identity
    base: Path

    @property
    def directory(self) -> Path:
        """The lab's own directory."""
        return self.base / self.id

    @property
    def file(self) -> Path:
        """The file that claims the id."""
        return self.base / f"{self.id}.json"

    @property
    def prefix(self) -> str:
        """How the names of the lab's namespaces begin."""
        return f"vmferry-{self.id}-"

    def namespaces(self) -> list[str]:
        """Return the names of the lab's network namespaces that exist now."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in Path("/run/netns").iterdir() if path.name.startswith(self.prefix))
        return []

    def processes(self) -> list[Identity]:
        """Return the lab's processes that run now."""
        return find_lab_processes(self.id, self.namespaces(), self.directory)


def base_directory() -> Path:
    """Return where labs live: /run/vmferry-lab for root, else the user's runtime or cache directory.

    Short on purpose: UNIX sockets below it must fit into 107 bytes.
    """
    if os.geteuid() == 0:
        return Path("/run/vmferry-lab")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "vmferry-lab" if runtime else Path.home() / ".cache/vmferry/lab"


def claim(base: Path | None = None) -> Claim:
    """Take an id that no other lab has, in the name of this process."""
    base = base or base_directory()
    owner = identify(os.getpid())
    if owner is None:
        raise Broken("This process cannot be found in /proc", fix="mount /proc")
    while True:
        found = Claim(secrets.token_hex(2), owner, base)
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # taken, or the last lab just left
            base.mkdir(mode=0o755, parents=True, exist_ok=True)
            _write_new(found)
            found.directory.mkdir(mode=0o711)
            return found


def destroy(lab: Claim) -> None:
    """Remove everything of a lab: processes, namespaces, files; in this order. Idempotent.

    Raises:
        Broken: a process would not end; the claim stays, so that a later sweep tries again.
    """
    for _ in range(3):  # a supervisor may start a worker between listing and killing
        left = kill_all(lab.processes())
    if left or lab.processes():
        raise Broken(f"Processes of lab {lab.id} do not end: {left}", fix="look at them, then run `vmferry lab sweep`")
    for name in lab.namespaces():
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, process_group=0)
    shutil.rmtree(lab.directory, ignore_errors=True)
    lab.file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        lab.base.rmdir()  # only when this was the last lab


def sweep(base: Path | None = None) -> list[str]:
    """Remove every lab whose owner is dead; returns their ids. Labs with a living owner are not touched."""
    dead = [lab for lab in all_labs(base) if not is_alive(lab.owner)]
    for lab in dead:
        destroy(lab)
    return [lab.id for lab in dead]


def all_labs(base: Path | None = None) -> list[Claim]:
    """Return every claimed lab; files that are no claim are passed over."""
    base = base or base_directory()
    return [found for path in sorted(base.glob("*.json")) if (found := _read(path)) is not None]


def _write_new(lab: Claim) -> None:
    """Write the claim in one step (a reader never sees half of it); raises FileExistsError when the id is taken."""
    draft = lab.base / f".{lab.id}.{lab.owner.pid}"
    draft.write_text(json.dumps(asdict(lab.owner)), "utf-8")
    try:
        os.link(draft, lab.file)
    finally:
        draft.unlink()


def _read(path: Path) -> Claim | None:
    try:
        return Claim(path.stem, Identity(**json.loads(path.read_text("utf-8"))), path.parent)
    except (OSError, ValueError, TypeError):
        return None
