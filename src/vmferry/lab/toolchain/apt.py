"""A private apt: another suite's packages from the machine's own mirror, without touching /etc/apt.

Lists, cache and package status live in a directory of ours. What the machine's configuration says about
*reaching* the mirror (proxies, certificates, clock checks) is taken over; what it says about sources,
preferences and hooks is not.

Source: apt.conf(5), sources.list(5), apt-get(8) `indextargets`.
"""

from collections.abc import Sequence
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.lab.toolchain.command import output_of

#: suites of Debian proper, as people write them; the mirror that serves one serves them all
DEBIAN_SUITES = ("bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable")

#: newest name first; both hold the keys of bookworm and of trixie
KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg")

FIX_SOURCES = "put a line `deb MIRROR SUITE main` of a Debian mirror into /etc/apt/sources.list"
FIX_NETWORK = "check that `apt-get update` works on this machine, then try again"


def machine_codename() -> str:
    """Return this Debian's code name, for example "bookworm"; empty when the machine does not say."""
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip().strip('"')
    return ""


def machine_mirror() -> str:
    """Return the address of the Debian mirror that this machine's apt uses.

    Raises:
        Broken: no source of apt serves a suite of Debian's.
    """
    listing = output_of(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(SITE)", "Created-By: Packages"],
        fix="vmferry's lab needs Debian 12 or 13",
    )
    return parse_mirror(listing, machine_codename())


def parse_mirror(listing: str, codename: str) -> str:
    """Return the mirror out of lines `suite component address`, the machine's own suite first.

    Raises:
        Broken: none of them is a main component of a Debian suite.
    """
    rows = [tuple(line.split(maxsplit=2)) for line in listing.splitlines()]
    sites = {row[0]: row[2] for row in reversed(rows) if len(row) == 3 and row[1] == "main"}
    for suite in (codename, *DEBIAN_SUITES):
        if suite in sites:
            return sites[suite].rstrip("/")
    raise Broken(f"apt's sources have no Debian suite (seen: {sorted(sites) or 'none'})", fix=FIX_SOURCES)


class PrivateApt:
    """Downloads packages of the given suites into a directory of ours; the system's apt is not changed.

    Args:
        directory: made if missing; holds configuration, lists and downloads.
        suites: suites of the machine's mirror, for example ("bookworm", "bookworm-backports").
        mirror: the mirror's address; the machine's own by default.
    """

    def __init__(self, directory: Path, suites: Sequence[str], mirror: str | None = None) -> None:
        self.directory = directory.absolute()
        self.suites = tuple(suites)
        self._mirror = mirror or machine_mirror()
        self._env = {"APT_CONFIG": str(self.directory / "apt.conf")}

    def update(self) -> None:
        """Fetch the suites' package lists.

        Raises:
            Broken: the mirror does not answer or its signature is not known here.
        """
        self._write_configuration()
        self._apt("update", "--error-on=any")

    def download(self, packages: Sequence[str], suite: str) -> list[Path]:
        """Return the package files of exactly these packages, from the suite where it has them, else from the others.

        Raises:
            Broken: no suite has a package, or it cannot be fetched.
        """
        target = self._emptied("wanted")
        self._apt("download", "-t", suite, *packages, cwd=target)
        return sorted(target.glob("*.deb"))

    def download_with_dependencies(self, packages: Sequence[str], suite: str) -> list[Path]:
        """Return the files of the packages and of all they depend on, as if nothing were installed here.

        Raises:
            Broken: the dependencies cannot be met or fetched.
        """
        target = self._emptied("closure")
        (target / "partial").mkdir()
        self._apt("install", "--yes", "--download-only", "-o", f"Dir::Cache::Archives={target}", "-t", suite, *packages)
        return sorted(target.glob("*.deb"))

    def _apt(self, *arguments: str, cwd: Path | None = None) -> str:
        return output_of(["apt-get", "-q", *arguments], env=self._env, cwd=str(cwd) if cwd else None, fix=FIX_NETWORK)

    def _emptied(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(parents=True, exist_ok=True)
        for old in path.glob("*.deb"):
            old.unlink()
        partial = path / "partial"
        if partial.is_dir():
            for old in partial.iterdir():
                old.unlink()
            partial.rmdir()
        return path

    def _write_configuration(self) -> None:
        for name in ("lists/partial", "cache", "state"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        (self.directory / "sources.list").write_text(self._sources(), encoding="utf-8")
        reach = [
            line for line in output_of(["apt-config", "dump"], fix=FIX_SOURCES).splitlines() if is_about_reach(line)
        ]
        ours = [
            f'Dir::Etc::SourceList "{self.directory}/sources.list";',
            f'Dir::State "{self.directory}/state";',
            f'Dir::State::Lists "{self.directory}/lists";',
            f'Dir::State::Status "{self.directory}/status";',
            f'Dir::Cache "{self.directory}/cache";',
            *(f'Dir::Etc::{key} "/dev/null";' for key in ("Parts", "Main", "SourceParts", "Preferences")),
            'Dir::Etc::PreferencesParts "/dev/null";',
            # apt's own user cannot enter a private directory; what is fetched is checked by its signature
            'APT::Sandbox::User "root";',
            'APT::Install-Recommends "false";',
            'Acquire::Languages "none";',
        ]
        (self.directory / "apt.conf").write_text("\n".join([*reach, *ours, ""]), encoding="utf-8")

    def _sources(self) -> str:
        keyring = next((path for path in KEYRINGS if Path(path).exists()), None)
        option = f"[signed-by={keyring}] " if keyring else ""
        return "".join(f"deb {option}{self._mirror} {suite} main\n" for suite in self.suites)


def is_about_reach(line: str) -> bool:
    """Tell whether a line of `apt-config dump` is about reaching a mirror (and is not an index definition)."""
    return line.startswith("Acquire::") and not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))
