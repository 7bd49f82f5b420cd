"""Certificates for streams: everything that is wrong with them is told at once, and keys go to QEMU alone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vmferry.core.errors import Broken, Refused
from vmferry.lab.certificates import StreamCa
from vmferry.pki.stream_directory import StreamDirectory
from vmferry.pki.stream_files import dump
from vmferry.pki.stream_rules import Use
from vmferry.ports.hypervisor import Certificates

DAY = dt.timedelta(days=1)


class World:
    """Two hosts of one CA."""

    def __init__(self, directory: Path) -> None:
        self.ca = StreamCa()
        self.a, self.b = directory / "a", directory / "b"
        self.ca.write(self.a, "host-a")
        self.ca.write(self.b, "host-b")
        self.source, self.destination = StreamDirectory(self.a, "host-a"), StreamDirectory(self.b, "host-b")

    @property
    def told(self) -> Certificates:
        """Return what the two hosts tell each other."""
        here, there = self.source.look(), self.destination.look()
        return Certificates(here.client, here.client_name, there.server, there.server_name)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two hosts that can move guests."""
    return World(tmp_path)


def test_good_ones(world: World) -> None:
    """Nothing is wrong, and what is told are the names by which the other side knows this host."""
    seen = world.source.look()
    assert seen.problems == ()
    assert (seen.server_name, seen.client_name) == ("host-a", "O=lab,CN=host-a")
    assert world.source.distrust(world.destination.look().server, "host-b", Use.SERVER) == ()
    world.destination.check_arrival(world.told, "host-a")


def encrypt_key(world: World) -> None:
    """Put a passphrase on a key."""
    path = world.a / "client-key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"open sesame")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))


def swap(world: World, one: str, other: str) -> int:
    """Put a file in another one's place; returns its size."""
    return (world.a / other).write_bytes((world.a / one).read_bytes())


def revoke(world: World, side: str) -> None:
    """Take a certificate back."""
    world.ca.revoke(world.a, side)
    world.ca.write_crl(world.a)


SPOILT: dict[str, tuple[Callable[[World], object], str]] = {
    "no CA": (lambda w: (w.a / "ca-cert.pem").unlink(), "ca-cert.pem cannot be read: No such file"),
    "no key": (lambda w: (w.a / "server-key.pem").unlink(), "server-key.pem cannot be read: No such file"),
    "no certificate": (lambda w: (w.a / "client-cert.pem").unlink(), "client-cert.pem cannot be read: No such file"),
    "a directory": (lambda w: (w.a / "ca-crl.pem").mkdir(), "ca-crl.pem cannot be read: Is a directory"),
    "a link to nothing": (lambda w: (w.a / "ca-crl.pem").symlink_to("none"), "ca-crl.pem cannot be read: No such"),
    "no PEM": (lambda w: (w.a / "server-cert.pem").write_text("x"), "server-cert.pem holds nothing that belongs there"),
    "no list": (lambda w: swap(w, "ca-cert.pem", "ca-crl.pem"), "ca-crl.pem holds nothing that belongs there"),
    "encrypted key": (encrypt_key, "client-key.pem is encrypted"),
    "another's key": (
        lambda w: swap(w, "client-key.pem", "server-key.pem"),
        "server-key.pem is not the key of server-cert.pem",
    ),
    "expired": (
        lambda w: w.ca.write(w.a, "host-a", sides=["server"], ends_in_s=-5),
        "server-cert.pem is of no use: it",
    ),
    "another CA": (
        lambda w: StreamCa("other").write(w.a, "host-a", sides=["client"]),
        "server-cert.pem is of no use: it is not issued by a CA of ca-cert.pem",  # which was replaced as well
    ),
    "the other purpose": (
        lambda w: [swap(w, f"server-{what}.pem", f"client-{what}.pem") for what in ("cert", "key")],
        "client-cert.pem is of no use: it is not for TLS clients (extendedKeyUsage)",
    ),
    "no CA's certificate": (
        lambda w: (w.a / "ca-cert.pem").write_bytes((w.b / "server-cert.pem").read_bytes()),
        "which is no CA",
    ),
    "revoked": (lambda w: revoke(w, "server"), "server-cert.pem is of no use: it was revoked (ca-crl.pem)"),
    "an old list": (lambda w: w.ca.write_crl(w.a, -DAY), "what was revoked since is not known"),
    "another CA's list": (
        lambda w: StreamCa("other").write_crl(w.a),
        "ca-crl.pem is not signed by a CA of ca-cert.pem",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_wrong_is_told(world: World, how: str) -> None:
    """Each with its fix and the host; whoever would arrive is refused with the same words."""
    spoil, told = SPOILT[how]
    spoil(world)
    problems = world.source.look().problems
    assert any(told in each.what for each in problems), problems
    assert all(each.fix and "host-a" in each.what for each in problems)
    assert {each.code for each in problems} == {"stream.certificates-unusable"}
    with pytest.raises(Refused, match=problems[0].what.replace("(", r"\(").replace(")", r"\)")):
        world.source.check_arrival(world.told, "host-b")


def test_all_of_it_at_once(world: World) -> None:
    """Four things in four files are four problems."""
    encrypt_key(world)
    revoke(world, "server")
    world.ca.write_crl(world.a, -DAY)
    world.ca.write(world.a, "host-a", sides=["client"], ends_in_s=-5)
    (world.a / "client-key.pem").unlink()
    told = " ".join(each.what for each in world.source.look().problems)
    for word in ("has ended on", "it was revoked", "it has expired", "client-key.pem cannot be read"):
        assert word in told


@pytest.mark.parametrize(
    ("days", "told"),
    [(3, ("server-cert.pem is of no use: it has expired", "of its CA: it has expired")), (-1, ("it begins on",))],
    ids=["later", "before"],
)
def test_time_counts(world: World, days: int, told: tuple[str, ...]) -> None:
    """What has ended, or has not begun, is of no use: certificates and the CA's own."""
    then = StreamDirectory(world.a, "host-a", lambda: dt.datetime.now(dt.UTC) + days * DAY)
    problems = " ".join(each.what for each in then.look().problems)
    assert [word for word in told if word not in problems] == []


def test_a_wildcard_names_no_host(world: World) -> None:
    """A certificate that is good for any host does not tell which one it is."""
    world.ca.write(world.a, "*.example.org", sides=["server"])
    assert "it names no host" in world.source.look().problems[0].what


def test_a_certificate_of_another_ca_is_not_believed(world: World) -> None:
    """Not of a server, not of a client."""
    StreamCa("other").write(world.b, "host-b")
    seen = world.destination.look()
    for pem, use in ((seen.server, Use.SERVER), (seen.client, Use.CLIENT)):
        (problem,) = world.source.distrust(pem, "host-b", use)
        assert problem.code == "stream.certificate-distrusted"
        assert problem.what.startswith(f"host-a does not believe the {use} certificate of host-b: it is not issued by")


@pytest.mark.parametrize("pem", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"])
def test_nonsense_is_not_believed(world: World, pem: str) -> None:
    """A peer may say anything."""
    (problem,) = world.source.distrust(pem, "host-b", Use.SERVER)
    assert "cannot be read" in problem.what
    with pytest.raises(Refused):
        world.destination.check_arrival(replace(world.told, client=pem), "host-a")


def test_half_a_list_is_no_list(world: World) -> None:
    """Of two lists of which one is cut off neither counts: what it held is not known."""
    world.ca.write_crl(world.a)
    path = world.a / "ca-crl.pem"
    path.write_bytes(2 * path.read_bytes())
    assert world.source.look().problems == ()
    path.write_bytes(path.read_bytes()[:-40])
    (problem,) = world.source.look().problems
    assert "ca-crl.pem holds nothing that belongs there" in problem.what


def test_a_file_without_an_end(world: World) -> None:
    """What is too large to be one of these is not read to a place in its middle."""
    with (world.a / "ca-crl.pem").open("wb") as file:
        file.truncate(9 << 20)
    (problem,) = world.source.look().problems
    assert "ca-crl.pem is larger than 8 MiB" in problem.what


def test_an_extension_that_is_none(world: World) -> None:
    """A certificate that can be read only in part is not used, whoever shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "host-b")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now).not_valid_after(now + DAY)
    junk = x509.UnrecognizedExtension(x509.ExtendedKeyUsage.oid, b"junk")
    pem = dump(builder.add_extension(junk, critical=False).sign(key, hashes.SHA256()))
    (problem,) = world.source.distrust(pem, "host-b", Use.SERVER)
    assert "cannot be read" in problem.what
    (world.a / "server-cert.pem").write_text(pem, "ascii")
    assert "server-cert.pem holds nothing that belongs there" in world.source.look().problems[0].what


def test_another_name_than_the_certificates_is_refused(world: World) -> None:
    """A source cannot have somebody else let in."""
    told = replace(world.told, client_name="O=lab,CN=stranger")
    with pytest.raises(Refused, match="is not named O=lab,CN=stranger"):
        world.destination.check_arrival(told, "host-a")


def test_a_certificate_that_was_replaced_since_is_refused(world: World) -> None:
    """On either side: nobody waits for a handshake that must fail, and another try may work."""
    told = world.told
    world.ca.write(world.b, "host-b", sides=["server"])
    with pytest.raises(Refused, match="server certificate of host-b was replaced") as refused:
        world.destination.check_arrival(told, "host-a")
    assert refused.value.retry
    world.ca.write(world.a, "host-a", sides=["client"])
    with pytest.raises(Broken, match="client certificate of host-a was replaced"):
        world.source.files(told, incoming=False)


def test_the_destination_gets_its_own_key_and_whom_to_believe(world: World) -> None:
    """The CA, what it took back, and one pair; not the other one."""
    world.ca.write_crl(world.b)
    files = world.destination.files(world.told, incoming=True)
    assert sorted(files) == ["ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem"]
    assert files["ca-cert.pem"] == (world.b / "ca-cert.pem").read_text("ascii")
    assert files["server-key.pem"] == (world.b / "server-key.pem").read_text("ascii")


def test_the_source_believes_one_certificate(world: World) -> None:
    """The one that the destination told of, and not everybody of its CA."""
    told = world.told
    files = world.source.files(told, incoming=False)
    assert sorted(files) == ["ca-cert.pem", "client-cert.pem", "client-key.pem"]
    assert files["ca-cert.pem"] == told.server


def test_nothing_of_a_key_is_told(world: World) -> None:
    """Whatever is wrong: no line of a key stands in what others are told, or in an error."""
    told = world.told
    lines = (world.a / "client-key.pem").read_text("ascii").splitlines()[1:-1]
    swap(world, "client-key.pem", "server-key.pem")
    swap(world, "client-key.pem", "ca-cert.pem")
    swap(world, "client-key.pem", "ca-crl.pem")
    with pytest.raises(Broken) as broken:
        world.source.files(told, incoming=False)
    said = f"{world.source.look()} {broken.value} {broken.value.problem()}"
    assert "PRIVATE KEY" not in said
    assert [line for line in lines if line in said] == []
