"""The private apt: which mirror, and that nothing of the system's own apt is used or changed."""

from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.lab.toolchain import apt
from vmferry.lab.toolchain.apt import PrivateApt, is_about_reach, parse_mirror
from vmferry.lab.toolchain.qemu import suites_for

LISTING = """\
nodistro main ftp://host-a/other
bookworm-security main ftp://host-a/debian-security
trixie main ftp://host-b/debian
bookworm main ftp://host-a/debian/
bookworm contrib ftp://host-c/debian
"""


def test_mirror_is_the_one_of_the_machines_own_release() -> None:
    """Of several Debian sources the one of this release is taken, without its trailing slash."""
    assert parse_mirror(LISTING, "bookworm") == "ftp://host-a/debian"


def test_mirror_of_another_release_serves_when_the_own_is_not_named() -> None:
    """A machine whose sources name another suite of Debian's still has a mirror."""
    assert parse_mirror("stable main file:/srv/debian\n", "bookworm") == "file:/srv/debian"


@pytest.mark.parametrize("listing", ["", "nodistro main ftp://host-a/x\n", "bookworm contrib ftp://host-a/x\n", "\n"])
def test_no_debian_source_is_said_with_its_fix(listing: str) -> None:
    """Without any Debian source the error says what was seen and which line to add."""
    with pytest.raises(Broken, match="no Debian suite.*sources.list"):
        parse_mirror(listing, "bookworm")


def test_only_how_to_reach_a_mirror_is_taken_over() -> None:
    """Proxies and certificates are kept; sources, hooks, pins and index definitions are not."""
    assert is_about_reach('Acquire::http::Proxy "ftp://host-a:3128";')
    assert is_about_reach('Acquire::Check-Valid-Until "false";')
    assert not is_about_reach('DPkg::Post-Invoke:: "rm -f /var/cache/apt/*.bin";')
    assert not is_about_reach('APT::Default-Release "sid";')
    assert not is_about_reach('Acquire::IndexTargets::deb::Packages::Optional "0";')


@pytest.mark.parametrize(
    ("wanted", "codename", "suites"),
    [
        ((7, 2), "bookworm", ("bookworm",)),
        ((7, 2), "trixie", ("bookworm",)),
        ((10, 0), "bookworm", ("bookworm", "bookworm-backports")),
        ((10, 0), "trixie", ("trixie",)),
    ],
)
def test_a_version_comes_from_the_suite_that_has_it(
    wanted: tuple[int, int], codename: str, suites: tuple[str, ...]
) -> None:
    """Each version is taken from a suite built for a libc that is not newer than the machine's."""
    assert suites_for(wanted, codename) == suites


def test_every_directory_that_apt_writes_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update runs with a configuration whose sources, lists, cache and status are all in our directory."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def record(argv: list[str], *, env: dict[str, str] | None = None, cwd: str | None = None, fix: str) -> str:
        calls.append((argv, env or {}))
        return 'Acquire::http::Proxy "ftp://host-a:3128";\nDir::State "/var/lib/apt";\n'

    monkeypatch.setattr(apt, "output_of", record)
    PrivateApt(tmp_path, ["bookworm"], "file:/srv/debian").update()
    argv, env = calls[-1]
    assert argv[-2:] == ["update", "--error-on=any"]
    configuration = Path(env["APT_CONFIG"]).read_text(encoding="utf-8")
    directories = [line.split('"')[1] for line in configuration.splitlines() if line.startswith("Dir::")]
    assert {path.startswith(str(tmp_path)) or path == "/dev/null" for path in directories} == {True}
    assert "Acquire::http::Proxy" in configuration
    assert (tmp_path / "sources.list").read_text(encoding="utf-8").endswith("file:/srv/debian bookworm main\n")
