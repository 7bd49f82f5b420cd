"""Orders that make no sense: each gets a clear error, its exit code, and touches nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.bad_input.conftest import Vmferry

from vmferry.core.units import MIB
from vmferry.lab.hosts import Lab

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

#: arguments -> exit code, and what the one line on standard error must hold
ORDERS: dict[str, tuple[list[str], int, list[str]]] = {
    "unknown guest": (["guest", "show", "web-8"], 2, ["guest web-8 is not known", "host-a, host-b", "guest list"]),
    "no name at all": (["guest", "stop", ""], 2, ["'' cannot be the name of a guest"]),
    "a path as name": (["guest", "show", "../../etc/passwd"], 2, ["cannot be the name of a guest"]),
    "a command as name": (["guest", "stop", "$(reboot); `id`"], 2, ["cannot be the name of a guest"]),
    "a query as name": (["guest", "pause", "web-7/../web-7?x#y"], 2, ["cannot be the name of a guest"]),
    "unknown destination": (["migrate", "web-7", "host-z"], 2, ["host-z is not in the fleet", "host-a, host-b"]),
    "unknown destination of a check": (["check", "web-7", "host-z"], 2, ["host-z is not in the fleet", "host list"]),
    "unknown host": (["host", "show", "host-z"], 2, ["host host-z is not in the fleet"]),
    "to where it is": (["check", "web-7", "host-a"], 3, []),
    "start what runs": (["guest", "start", "web-7"], 2, ["running already", "guest runs on host-a"]),
    "remove what runs": (["guest", "remove", "web-7"], 2, ["is running", "guest runs on host-a", "stop it first"]),
    "nothing under way": (["cancel", "web-7"], 2, ["no hand-over of web-7 is under way"]),
    "nothing to watch": (["watch"], 2, ["no hand-over is under way"]),
    "unknown hand-over": (["handover", "show", "deadbeef"], 2, ["no hand-over of deadbeef is known"]),
    "a bare number": (["migrate", "web-7", "host-b", "--bandwidth", "5"], 2, ["--bandwidth '5'", "Mbit/s"]),
    "beyond any link": (["migrate", "web-7", "host-b", "--bandwidth", "9" * 30 + "GB/s"], 2, ["too much", "1000GB/s"]),
    "no downtime": (["migrate", "web-7", "host-b", "--downtime-limit", "0ms"], 2, ["--downtime-limit '0ms'"]),
    "too much downtime": (["migrate", "web-7", "host-b", "--downtime-limit", "2h"], 2, ["1ms to 60s"]),
    "too much patience": (["guest", "stop", "web-7", "--time-limit", "99h"], 2, ["--time-limit 99h is too much"]),
    "fence what answers": (["recover", "--fenced", "host-b"], 2, ["host-b is not off", "switch host-b off first"]),
    "fence a stranger": (["recover", "--fenced", "host-z"], 2, ["host-z is not in the fleet"]),
    "no CA here": (["host", "remove", "host-b"], 2, ["There is no CA key", "--ca-dir"]),
    "no such role": (["operator", "add", "bob", "--role", "root", "--out", "/x"], 2, ["'root' is no role", "operate"]),
    "a typo": (["guest", "lst"], 2, ["No such command 'lst'", "list"]),
}


async def test_orders_that_make_no_sense_are_refused(vmferry: Vmferry, untouched: None) -> None:
    """Each ends with its exit code, says what is wrong, what there is and what to do, and touches nothing."""
    for name, (arguments, exit_code, words) in ORDERS.items():
        ran = await vmferry(*arguments)
        assert (name, ran.exit_code) == (name, exit_code), ran
        assert not [word for word in words if word not in ran.stderr], ran.stderr


async def test_a_program_gets_the_same_error_as_json(vmferry: Vmferry) -> None:
    """With --json the problem is one object on standard output, with the code that the exit code stands for."""
    ran = await vmferry("guest", "show", "web-8", "--json")
    told = json.loads(ran.stdout)
    assert (ran.exit_code, told["event"], told["code"]) == (2, "problem", "not-found")
    assert told["what"] in ran.stderr


GOOD = 'name = "new-1"\nmemory = "32 MiB"\n'

#: a guest file -> what the error must hold; {lab} is a directory from which guests may use files
FILES: dict[str, tuple[str, list[str]]] = {
    "unknown key": (GOOD + 'memroy = 1\n[boot]\nkernel = "/k"\n', ["{file}:3: memroy: unknown key", "allowed: memory"]),
    "not TOML": ('name = "x', ["{file}:1: (syntax)"]),
    "not text": ("\udcff", ["{file}:1", "byte 0xff", "UTF-8"]),
    "shell characters": (GOOD.replace("new-1", "a;rm -rf /"), ["{file}:1: name", "a-z, 0-9 and -"]),
    "relative image": (GOOD + '[boot]\nfirmware = "bios"\n[[disk]]\nimage = "x"\n', ["{file}:6: disk[0].image"]),
    "no such file": (GOOD + '[boot]\nkernel = "{lab}/none"\n', ["host-a: kernel {lab}/none: No such file"]),
    "a secret": (GOOD + '[boot]\nkernel = "/etc/shadow"\n', ["/etc/shadow", "image_dirs of this host"]),
    "a link to a secret": (GOOD + '[boot]\nkernel = "{lab}/link"\n', ["it is /etc/shadow"]),
    "the CA's key": (GOOD + '[boot]\nkernel = "{lab}/host-a/state/ca/ca-key.pem"\n', ["not below a directory"]),
    "a pipe": (GOOD + '[boot]\nkernel = "{lab}/pipe"\n', ["neither a file nor a block device"]),
    "a directory": (GOOD + '[boot]\nkernel = "{lab}/host-a"\n', ["neither a file nor a block device"]),
    "an endless device": (GOOD + '[boot]\nkernel = "/dev/zero"\n', ["not below a directory"]),
    "everything at once": (
        GOOD.replace("32 MiB", "1 TiB")
        + '[boot]\nkernel = "{lab}/none"\n[[nic]]\nnetwork = "bridge"\nbridge = "br9"\n',
        ["kernel {lab}/none", "bridge br9, which this host does not have", "it has br0", "1024.0 GiB of memory"],
    ),
    "not a disk": (
        GOOD + '[boot]\nfirmware = "bios"\n[[disk]]\nimage = "{lab}/blank"\n',
        ["{lab}/blank is not qcow2", 'format = "raw"'],
    ),
    "the name of another": (GOOD.replace("new-1", "web-7") + '[boot]\nkernel = "{lab}/blank"\n', ["exists already"]),
}


@pytest.fixture
def traps(lab: Lab) -> Path:
    """A directory that guests may use, with things in it that they may not."""
    link, pipe, blank = (lab.directory / name for name in ("link", "pipe", "blank"))
    if not link.is_symlink():
        link.symlink_to("/etc/shadow")
        os.mkfifo(pipe)
        blank.write_bytes(bytes(1 * MIB))
    return lab.directory


async def test_guest_files_with_mistakes_touch_nothing(
    vmferry: Vmferry, traps: Path, untouched: None, tmp_path: Path
) -> None:
    """Each names file, line and key, or the file of the host that cannot be used; no guest, file or process is left."""
    for name, (text, words) in FILES.items():
        path = tmp_path / f"{name.replace(' ', '-')}.toml"
        path.write_bytes(text.replace("{lab}", str(traps)).encode(errors="surrogateescape"))
        ran = await vmferry("guest", "run", str(path), "--on", "host-a")
        expected = [word.replace("{lab}", str(traps)).replace("{file}", str(path)) for word in words]
        assert (name, ran.exit_code) == (name, 2), ran.stderr
        assert not [word for word in expected if word not in ran.stderr], ran.stderr


@pytest.mark.parametrize("size", [10 * MIB, None], ids=["ten MiB", "endless"])
async def test_a_huge_guest_file_is_not_read(vmferry: Vmferry, tmp_path: Path, size: int | None) -> None:
    """More than 1 MiB is refused without reading the rest."""
    path = tmp_path / "big.toml"
    path.write_bytes(b"#" * (size or 0))
    ran = await vmferry("guest", "run", str(path) if size else "/dev/zero", "--on", "host-a")
    assert (ran.exit_code, "is larger than 1 MiB" in ran.stderr) == (2, True)


async def test_a_name_is_taken_in_the_whole_fleet(vmferry: Vmferry, lab: Lab, untouched: None) -> None:
    """A second guest of one name is refused on the other host too, where nobody knows the first one."""
    ran = await vmferry("guest", "run", str(lab.directory / "web-7.toml"), "--on", "host-b")
    assert ran.exit_code == 2
    assert "there is a guest of the name web-7 on host-a already" in ran.stderr


async def test_an_image_in_use_is_named(vmferry: Vmferry, lab: Lab, traps: Path, untouched: None) -> None:
    """A guest whose disk another process has open does not start; the error names the image, nothing stays."""
    text = (lab.directory / "web-7.toml").read_text().replace('"web-7"', '"new-1"').replace("disk = []", "")
    path = lab.directory / "new-1.toml"
    path.write_text(f'{text}\n[[disk]]\nimage = "{traps}/blank"\nformat = "raw"\n')
    assert (await vmferry("guest", "run", str(path), "--on", "host-a")).exit_code == 0
    path.write_text(path.read_text().replace('"new-1"', '"new-2"'))
    ran = await vmferry("guest", "run", str(path), "--on", "host-b")
    assert ran.exit_code == 7
    assert f"lock | Is another process using the image [{traps}/blank]" in ran.stderr
    assert "stop the guest that uses it" in ran.stderr
    assert (await vmferry("guest", "stop", "new-1", "--force")).exit_code == 0
    assert (await vmferry("guest", "remove", "new-1")).exit_code == 0
