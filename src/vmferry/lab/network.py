"""The lab's network: hosts in network namespaces, a fabric for guest traffic, a management link between the hosts.

    host-a  br0 --veth-- fabric br0 --veth-- br0  host-b      guest traffic; the prober lives in the fabric
    host-a  mgmt0 10.77.0.1 ------ 10.77.0.2 mgmt0  host-b    agents and migration; can be limited and cut

With more than two hosts the management link is a second bridge in the fabric. Namespaces keep labs apart, so every
lab uses the same addresses and interface names. No link has an IPv6 address: nothing here needs one, and neighbour
discovery would be noise on the link that is measured.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import subprocess
from collections.abc import Sequence

from vmferry.core.errors import BadInput
from vmferry.core.units import KIB, BytesPerSecond
from vmferry.lab.iproute import batch, run
from vmferry.lab.registry import Claim

MANAGEMENT = "mgmt0"
BRIDGE = "br0"
FABRIC = "fabric"
#: The fabric is .1 in it, hosts follow (their agents probe guests from there), guests begin at .10.
GUEST_NETWORK = ipaddress.IPv4Network("10.78.0.0/24")
FABRIC_ADDRESS = str(GUEST_NETWORK[1])
MANAGEMENT_NETWORK = ipaddress.IPv4Network("10.77.0.0/24")
#: Addresses that nobody reaches but through a relay (relay.py).
RELAYED_NETWORK = ipaddress.IPv4Network("10.77.1.0/24")


class Cut(enum.Enum):
    """How the management link fails."""

    DOWN = "down"  #: the interface goes down: both sides see that the carrier is gone
    SILENT = "silent"  #: every packet vanishes, both ways; nobody is told


class Network:
    """The network of one lab. `create` builds all of it or nothing; `destroy` is idempotent."""

    def __init__(self, lab: Claim, hosts: Sequence[str] = ("host-a", "host-b")) -> None:
        self._lab = lab
        self.hosts = tuple(hosts)

    def namespace(self, host: str) -> str:
        """Return the namespace of a host, or of the fabric."""
        return f"{self._lab.prefix}{host}"

    def management_address(self, host: str) -> str:
        """Return the host's address on the management link."""
        return str(MANAGEMENT_NETWORK[1 + self._index(host)])

    def relayed_address(self, host: str) -> str:
        """Return an address that the host has on its loopback, for streams that come through a relay."""
        return relayed_address(self._index(host))

    def inside(self, host: str) -> list[str]:
        """Return the argument prefix that runs a command inside a host (or "fabric")."""
        return ["ip", "netns", "exec", self.namespace(host)]

    def create(self) -> None:
        """Build namespaces, bridges and links; on failure nothing is left."""
        try:
            for name in (FABRIC, *self.hosts):
                run("ip", "netns", "add", self.namespace(name))
            self._create_fabric()
            for index in range(len(self.hosts)):
                self._create_host(index)
            self._create_management()
        except BaseException:
            self.destroy()
            raise

    def destroy(self) -> None:
        """Remove every namespace of this lab, and with them their links; idempotent."""
        for name in self._lab.namespaces():
            run("ip", "netns", "del", name)

    def limit(self, rate: BytesPerSecond | None) -> None:
        """Limit the management link to a rate in each direction, or remove the limit (None); works on a live link.

        Source: tc-tbf(8); burst is at least 256 KiB and 5 ms of the rate, else the limit cannot be reached.
        """
        for host in self.hosts:
            if rate is None:
                self._clear_queue(host)
            else:
                burst = max(256 * KIB, rate // 200)
                self._set_queue(host, f"tbf rate {8 * rate}bit burst {burst} latency 50ms")

    def cut(self, host: str | None = None, how: Cut = Cut.DOWN) -> None:
        """Cut the management link (of one host, when there are more than two); idempotent."""
        for name in (host,) if host else self.hosts[:1]:
            if how is Cut.DOWN:
                batch(self.namespace(name), [f"link set {MANAGEMENT} down"])
        if how is Cut.SILENT:
            for name in self.hosts:
                self._set_queue(name, "blackhole")

    def heal(self) -> None:
        """Bring the management link back; idempotent. A limit that a silent cut replaced must be set again."""
        for name in self.hosts:
            batch(self.namespace(name), [f"link set {MANAGEMENT} up"])
            if self._queue(name) == "blackhole":
                self._clear_queue(name)

    def _create_fabric(self) -> None:
        lines = [*_up("lo"), f"link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0", *_up(BRIDGE)]
        batch(self.namespace(FABRIC), [*lines, f"addr add {FABRIC_ADDRESS}/{GUEST_NETWORK.prefixlen} dev {BRIDGE}"])

    def _create_host(self, index: int) -> None:
        """Give the host its bridge, joined to the fabric's."""
        port, fabric = f"port{index}", self.namespace(FABRIC)
        lines = [
            *_up("lo"),
            f"addr add {relayed_address(index)}/32 dev lo",
            f"link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0",
            *_up(BRIDGE),
            f"addr add {GUEST_NETWORK[2 + index]}/{GUEST_NETWORK.prefixlen} dev {BRIDGE}",
            f"link add uplink0 type veth peer name {port} netns {fabric}",
            f"link set uplink0 master {BRIDGE}",
            *_up("uplink0"),
        ]
        batch(self.namespace(self.hosts[index]), lines)
        batch(fabric, [f"link set {port} master {BRIDGE}", *_up(port)])

    def _create_management(self) -> None:
        if len(self.hosts) == 2:
            peer = self.namespace(self.hosts[1])
            batch(
                self.namespace(self.hosts[0]), [f"link add {MANAGEMENT} type veth peer name {MANAGEMENT} netns {peer}"]
            )
        else:
            self._create_management_bridge()
        for host in self.hosts:
            address = f"addr add {self.management_address(host)}/{MANAGEMENT_NETWORK.prefixlen} dev {MANAGEMENT}"
            batch(self.namespace(host), [*_up(MANAGEMENT), address])

    def _create_management_bridge(self) -> None:
        fabric = self.namespace(FABRIC)
        batch(fabric, ["link add mgmtbr type bridge forward_delay 0 mcast_snooping 0", *_up("mgmtbr")])
        for index, host in enumerate(self.hosts):
            port = f"mgmt{index}"
            batch(self.namespace(host), [f"link add {MANAGEMENT} type veth peer name {port} netns {fabric}"])
            batch(fabric, [f"link set {port} master mgmtbr", *_up(port)])

    def _index(self, host: str) -> int:
        if host not in self.hosts:
            raise BadInput(f"No host {host} in this lab", fix=f"take one of {', '.join(self.hosts)}")
        return self.hosts.index(host)

    def _set_queue(self, host: str, queue: str) -> None:
        run("tc", "-n", self.namespace(host), "qdisc", "replace", "dev", MANAGEMENT, "root", *queue.split())

    def _clear_queue(self, host: str) -> None:
        if self._queue(host) not in {"", "noqueue"}:
            run("tc", "-n", self.namespace(host), "qdisc", "del", "dev", MANAGEMENT, "root")

    def _queue(self, host: str) -> str:
        """Return the kind of the link's queue, e.g. "tbf"."""
        words = run("tc", "-n", self.namespace(host), "qdisc", "show", "dev", MANAGEMENT, "root").split()
        return words[1] if len(words) > 1 else ""


def relayed_address(index: int) -> str:
    """Return the address of the n-th host behind a relay."""
    return str(RELAYED_NETWORK[1 + index])


def namespaces_missing() -> str | None:
    """Return why hosts cannot be network namespaces here, with what to do; None when they can."""
    if os.geteuid() != 0:
        return "not root: network namespaces need it (run as root, or with sudo)"
    try:
        probe = ["unshare", "--net", "--mount", "true"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False, process_group=0)
    except FileNotFoundError:
        return "unshare is missing: apt-get install util-linux"
    return f"network namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else None


def _up(device: str) -> list[str]:
    """Bring a device up without giving it an IPv6 address."""
    none = [] if device == "lo" else [f"link set {device} addrgenmode none"]
    return [*none, f"link set {device} up"]
