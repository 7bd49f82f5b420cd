"""Both libvirts of this machine: found, told apart, and laid in each other's place without a change to the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.core.errors import Broken, NotFound
from vmferry.lab.toolchain import libvirt
from vmferry.lab.toolchain.libvirt import LibvirtBuild, ensure_libvirt, find_libvirt, find_libvirts


def daemon(path: Path, version: str) -> None:
    """Write a daemon that says it is of this version; one of no version does not start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    says = f"echo 'libvirtd (libvirt) {version}'" if version else "exit 127"
    path.write_text(f"#!/bin/sh\n{says}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has libvirt 9.0 installed and 11.3 unpacked; returns where the unpacked one lies."""
    monkeypatch.setenv("VMFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(libvirt, "INSTALLED", tmp_path / "installed")
    daemon(tmp_path / "installed", "9.0.0")
    root = tmp_path / "cache/libvirt/11.3/root"
    daemon(root / "usr/sbin/libvirtd", "11.3.0")
    return root


def test_both_are_found(machine: Path) -> None:
    """Newest first; which one is unpacked is told, and what is not there is not found."""
    assert find_libvirts() == [LibvirtBuild((11, 3, 0), machine), LibvirtBuild((9, 0, 0), None)]
    assert find_libvirt(9, 0).root is None
    with pytest.raises(NotFound, match=r"no libvirt 8\.0 on this machine; run `./run setup`"):
        find_libvirt(8, 0)


def test_where_both_are_installed_nothing_is_unpacked(machine: Path) -> None:
    """The installed one is taken where there are two of a version, and nothing is fetched when all is there."""
    daemon(libvirt.INSTALLED, "11.3.1")
    assert find_libvirt(11, 3) == LibvirtBuild((11, 3, 1), None)
    said: list[str] = []
    assert len(ensure_libvirt(said.append)) == 2
    assert said == []


def test_one_that_does_not_start_is_none(machine: Path) -> None:
    """For example for want of a library: it is not offered to tests."""
    daemon(machine / "usr/sbin/libvirtd", "")
    assert [build.version for build in find_libvirts()] == [(9, 0, 0)]


def test_without_an_installed_one_there_is_none(machine: Path) -> None:
    """An unpacked one is mounted over the installed one's files."""
    libvirt.INSTALLED.unlink()
    assert find_libvirts() == []


def test_another_version_than_wanted_is_no_result(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that has moved on is told, and what was unpacked is thrown away."""
    (machine / "usr/sbin/libvirtd").unlink()

    class Apt:
        def __init__(self, *_: object) -> None: ...

        def update(self) -> None: ...

        def download(self, packages: object, suite: str) -> list[Path]:
            return []

    monkeypatch.setattr(libvirt, "PrivateApt", Apt)
    monkeypatch.setattr(libvirt, "unpack", lambda debs, root: daemon(root / "usr/sbin/libvirtd", "12.0.0"))
    with pytest.raises(Broken, match=r"has libvirt 12\.0\.0, wanted 11\.3"):
        ensure_libvirt(lambda line: None)
    assert {path.name for path in machine.parent.parent.iterdir()} == {"11.3", "lock"}
    assert [build.version for build in find_libvirts()] == [(9, 0, 0)]


def test_an_unpacked_one_takes_the_installed_ones_place() -> None:
    """What it is mounted over exists on the machine; the installed one needs no mounts."""
    try:
        build = find_libvirt(11, 3)
    except NotFound as error:
        pytest.skip(str(error))
    if build.root is None:
        pytest.skip("libvirt 11.3 is installed here: nothing is laid over anything")
    places = {where.name for _, where in build.mounts()}
    assert {"libvirtd", "libvirt"} <= places
    assert any(name.startswith("libvirt.so.0") for name in places)
    assert all(what.is_relative_to(build.root) and where.exists() for what, where in build.mounts())
    assert list(find_libvirt(9, 0).mounts()) == []
