"""The kit that every Journal must pass: subclass `JournalConformance` and give it a fixture `journal`."""

# ruff: noqa: S101 - the checks of a kit are assertions

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import BadInput, GuestBusy, NotFound, Refused
from vmferry.core.functions import FunctionSettings
from vmferry.core.guest import (
    Acceleration,
    BiosBoot,
    Boot,
    Desired,
    Disk,
    FrozenDevice,
    FrozenGuest,
    GuestSpec,
    KernelBoot,
    Nic,
    UefiBoot,
)
from vmferry.core.ids import Epoch, GuestName, GuestUuid, HandoverId, HostName
from vmferry.core.pci import PciAddress
from vmferry.core.units import MIB, Bytes
from vmferry.ports.hypervisor import ProcessRecord
from vmferry.ports.store import GuestRow, HandoverRow, Journal, Reservation, Saving, SavingKind, Token

WEB = GuestName("web-7")
KERNEL_BOOT = KernelBoot("/boot/vmlinuz", initrd="/boot/initrd", cmdline="quiet")


def make_guest_row(name: str = WEB, *, epoch: int = 1, boot: Boot = KERNEL_BOOT) -> GuestRow:
    """Return a guest row with every kind of field filled."""
    spec = GuestSpec(
        name=GuestName(name),
        memory_bytes=Bytes(512 * MIB),
        boot=boot,
        disks=(Disk("/shared/web-7.qcow2"),),
        nics=(Nic(mac="52:54:00:00:00:01", forward_udp=((2000, 7),)),),
    )
    device = FrozenDevice("net0", "virtio-net-pci", "pcie.0", "0x2", (("romfile", ""), ("bar", 1), ("mq", False)))
    guest = FrozenGuest(
        spec=spec,
        uuid=GuestUuid("6f1b9e1a-2f2e-4f0e-9b2e-0d6b6a3c1d11"),
        acceleration=Acceleration.TCG,
        cpu="qemu64,sse4.2=on",
        machine="pc-q35-7.2",
        devices=(device,),
        macs=("52:54:00:00:00:01",),
        boot_hashes=(("/boot/vmlinuz", "00ff"),),
    )
    token = Token(Epoch(epoch), HostName("host-a"), running=True)
    return GuestRow(guest, token, Desired.RUNNING, ProcessRecord(4711, 99, "boot"), beat_port=5001, uid=70001)


def make_handover_row(handover: str = "h1", guest: str = WEB, side: str = "source") -> HandoverRow:
    """Return a hand-over that was just opened."""
    return HandoverRow(
        id=HandoverId(handover),
        guest=GuestName(guest),
        side=side,
        peer=HostName("host-b"),
        state="CHECKING",
        request={"destination": "host-b", "options": {"plain": False}},
        report=None,
        finished=False,
        created_at=1000.5,
    )


def make_claim(address: str, guest: str, group: int, port: str) -> DeviceClaim:
    """Return a device that is kept for a guest."""
    return DeviceClaim(PciAddress.parse(address), GuestName(guest), group, port)


def make_reservation(handover: str, guest: str, *, mib: int = 100, port: int = 49152) -> Reservation:
    """Return a reservation."""
    return Reservation(HandoverId(handover), GuestName(guest), Bytes(mib * MIB), port)


class JournalConformance:
    """What every Journal promises, one sentence per test."""

    @pytest.mark.parametrize("boot", [KERNEL_BOOT, UefiBoot("/fw/code.fd", "/fw/vars.fd"), BiosBoot()], ids=str)
    def test_guest_round_trip(self, journal: Journal, boot: Boot) -> None:
        """A guest row comes back equal, whatever it boots from."""
        row = make_guest_row(boot=boot)
        journal.put_guest(row)
        assert journal.guest(WEB) == row
        assert list(journal.guests()) == [row]

    def test_put_guest_replaces(self, journal: Journal) -> None:
        """Storing a guest again replaces all of its row."""
        journal.put_guest(make_guest_row())
        later = replace(make_guest_row(epoch=2), desired=Desired.STOPPED, process=None, uid=None, note="crashed")
        journal.put_guest(later)
        assert journal.guest(WEB) == later

    def test_remove_guest(self, journal: Journal) -> None:
        """A removed guest is gone, and removing it again is no error."""
        journal.put_guest(make_guest_row())
        journal.remove_guest(WEB)
        journal.remove_guest(WEB)
        assert journal.guest(WEB) is None

    def test_unknown_is_none(self, journal: Journal) -> None:
        """What is not there is None or empty, never an error."""
        assert journal.guest(GuestName("nobody")) is None
        assert journal.handover(HandoverId("h9"), "source") is None
        assert list(journal.events(HandoverId("h9"), "source")) == []

    def test_handover_round_trip(self, journal: Journal) -> None:
        """A hand-over comes back equal."""
        row = make_handover_row()
        journal.open_handover(row)
        assert journal.handover(row.id, "source") == row
        assert journal.handover(row.id, "destination") is None

    def test_one_unfinished_handover_per_guest(self, journal: Journal) -> None:
        """A guest has one unfinished hand-over; a second one is GuestBusy and leaves nothing."""
        journal.open_handover(make_handover_row("h1"))
        with pytest.raises(GuestBusy, match="h1"):
            journal.open_handover(make_handover_row("h2"))
        assert journal.handover(HandoverId("h2"), "source") is None

    def test_next_handover_after_finish(self, journal: Journal) -> None:
        """A finished hand-over does not hold its guest, and the newest comes first."""
        journal.open_handover(make_handover_row("h1"))
        journal.append(HandoverId("h1"), "source", [({"event": "done"}, "DONE")], finished=True)
        journal.open_handover(make_handover_row("h2"))
        assert [row.id for row in journal.handovers()] == ["h2", "h1"]
        assert [row.id for row in journal.handovers(unfinished_only=True)] == ["h2"]

    def test_same_handover_twice(self, journal: Journal) -> None:
        """Opening the same side of the same hand-over twice is refused."""
        journal.open_handover(make_handover_row("h1"))
        with pytest.raises(BadInput):
            journal.open_handover(make_handover_row("h1"))

    def test_append_moves_state_and_token_together(self, journal: Journal) -> None:
        """An append writes the event, the state and the token."""
        journal.put_guest(make_guest_row())
        journal.open_handover(make_handover_row())
        token = Token(Epoch(2), HostName("host-b"), running=False, cont_intent=True)
        journal.append(HandoverId("h1"), "source", [({"event": "loaded"}, "COMMITTED")], token=(WEB, token))
        row, guest = journal.handover(HandoverId("h1"), "source"), journal.guest(WEB)
        assert row is not None
        assert guest is not None
        assert (row.state, row.finished, guest.token) == ("COMMITTED", False, token)

    def test_events_in_order(self, journal: Journal) -> None:
        """Events come back in the order of their appends, each with the state it led to."""
        journal.open_handover(make_handover_row())
        for number in range(5):
            journal.append(HandoverId("h1"), "source", [({"event": "tick", "n": number}, f"S{number}")])
        events = journal.events(HandoverId("h1"), "source")
        assert [(row.event["n"], row.state) for row in events] == [(n, f"S{n}") for n in range(5)]
        assert [row.seq for row in events] == sorted(row.seq for row in events)

    def test_append_without_guest_writes_nothing(self, journal: Journal) -> None:
        """A token for an unknown guest is refused, and neither event nor state is written."""
        journal.open_handover(make_handover_row())
        token = Token(Epoch(2), HostName("host-b"), running=True)
        with pytest.raises(NotFound):
            journal.append(HandoverId("h1"), "source", [({"event": "x"}, "COMMITTED")], token=(WEB, token))
        row = journal.handover(HandoverId("h1"), "source")
        assert row is not None
        assert row.state == "CHECKING"
        assert list(journal.events(HandoverId("h1"), "source")) == []

    def test_append_to_unknown_handover(self, journal: Journal) -> None:
        """An event of an unknown hand-over is refused and leaves the token alone."""
        journal.put_guest(make_guest_row())
        token = Token(Epoch(2), HostName("host-b"), running=True)
        with pytest.raises(NotFound):
            journal.append(HandoverId("h9"), "source", [({"event": "x"}, "DONE")], token=(WEB, token))
        assert journal.guest(WEB) == make_guest_row()

    def test_finish(self, journal: Journal) -> None:
        """A hand-over that was finished keeps its state and holds its guest no more; an unknown one is refused."""
        journal.open_handover(make_handover_row())
        journal.append(HandoverId("h1"), "source", [({"event": "x"}, "DONE")])
        assert [row.id for row in journal.handovers(unfinished_only=True)] == ["h1"]
        for _ in range(2):
            journal.finish(HandoverId("h1"), "source")
        row = journal.handover(HandoverId("h1"), "source")
        assert row is not None
        assert (row.state, row.finished) == ("DONE", True)
        journal.open_handover(make_handover_row("h2"))
        with pytest.raises(NotFound):
            journal.finish(HandoverId("h9"), "source")

    def test_report(self, journal: Journal) -> None:
        """A report is stored with its hand-over; without one it is refused."""
        journal.open_handover(make_handover_row())
        journal.put_report(HandoverId("h1"), "source", {"total_ms": 1234.5, "gap": None})
        row = journal.handover(HandoverId("h1"), "source")
        assert row is not None
        assert row.report == {"total_ms": 1234.5, "gap": None}
        with pytest.raises(NotFound):
            journal.put_report(HandoverId("h9"), "source", {})

    def test_a_request_that_changes(self, journal: Journal) -> None:
        """What is asked for may change on the way; nothing else of the hand-over does."""
        journal.open_handover(make_handover_row())
        before = journal.handover(HandoverId("h1"), "source")
        assert before is not None
        journal.put_request(HandoverId("h1"), "source", {**before.request, "bandwidth": 5})
        row = journal.handover(HandoverId("h1"), "source")
        assert row == replace(before, request={**before.request, "bandwidth": 5})
        with pytest.raises(NotFound):
            journal.put_request(HandoverId("h9"), "source", {})

    def test_a_guest_goes_into_one_file_at_a_time(self, journal: Journal) -> None:
        """What has begun is there until it is ended; a guest has one at a time."""
        save = Saving("s1", GuestName("web-7"), SavingKind.SAVE, "/srv/web-7.guest")
        other = Saving("s2", GuestName("db-1"), SavingKind.RESTORE, "/srv/db-1.guest")
        journal.begin_saving(save)
        journal.begin_saving(other)
        assert list(journal.savings()) == [other, save]
        with pytest.raises(GuestBusy):
            journal.begin_saving(replace(save, id="s3"))
        journal.end_saving("s1")
        journal.end_saving("s1")
        assert list(journal.savings()) == [other]

    def test_a_commit_into_a_file_is_one_write(self, journal: Journal) -> None:
        """What was begun and the guest's token change together, or neither does."""
        row = make_guest_row()
        name = row.guest.spec.name
        journal.put_guest(row)
        journal.begin_saving(Saving("s1", name, SavingKind.SAVE, "/srv/web-7.guest"))
        token = replace(row.token, epoch=Epoch(row.token.epoch + 1), owner=HostName(":saved"))
        with pytest.raises(NotFound):
            journal.commit_saving("s9", name, token)
        with pytest.raises(NotFound):
            journal.commit_saving("s1", GuestName("db-1"), token)
        assert journal.guest(name) == row
        assert not journal.savings()[0].committed
        journal.commit_saving("s1", name, token, "ab")
        assert journal.guest(name) == replace(row, token=token)
        (saving,) = journal.savings()
        assert (saving.committed, saving.digest) == (True, "ab")

    def test_a_device_and_its_group_are_one_guests(self, journal: Journal) -> None:
        """Devices are kept all or none: a device, a group and a guest's port have one owner each."""
        web = [make_claim("01:10.0", "web-7", 20, "rp0"), make_claim("02:00.0", "web-7", 21, "rp1")]
        journal.claim_devices(web)
        assert list(journal.device_claims()) == web
        for wrong in (
            make_claim("01:10.0", "db-1", 20, "rp0"),
            make_claim("01:10.0", "web-7", 20, "rp3"),
            make_claim("02:00.1", "db-1", 21, "rp0"),
            make_claim("03:00.0", "web-7", 22, "rp0"),
        ):
            with pytest.raises(Refused):
                journal.claim_devices([make_claim("04:00.0", "db-1", 23, "rp2"), wrong])
        assert list(journal.device_claims()) == web
        before = FunctionSettings(mac="00:00:00:00:00:00", vlan=9)
        function = replace(make_claim("02:00.1", "web-7", 21, "rp2"), was_kept=True, wanted="nic0", before=before)
        journal.claim_devices([function])
        assert list(journal.device_claims())[-1] == function
        journal.release_device(web[0].address)
        journal.release_device(web[0].address)
        assert [str(claim.address) for claim in journal.device_claims()] == ["0000:02:00.0", "0000:02:00.1"]

    def test_last_memory_goes_to_one(self, journal: Journal) -> None:
        """Of two reservations that race for the last memory the second is refused and holds nothing."""
        free = Bytes(150 * MIB)
        journal.reserve(make_reservation("h1", "web-7", port=1), free)
        with pytest.raises(Refused, match=r"50\.0 MiB is free"):
            journal.reserve(make_reservation("h2", "web-8", port=2), free)
        assert [held.handover for held in journal.reservations()] == ["h1"]

    @pytest.mark.parametrize(
        "second",
        [make_reservation("h2", "web-8", port=1), make_reservation("h2", "web-7", port=2)],
        ids=["port", "name"],
    )
    def test_port_and_name_are_held(self, journal: Journal, second: Reservation) -> None:
        """A port or a name that is held goes to nobody else."""
        journal.reserve(make_reservation("h1", "web-7", port=1), Bytes(1000 * MIB))
        with pytest.raises(Refused, match="h1"):
            journal.reserve(second, Bytes(1000 * MIB))

    def test_reserve_again_and_release(self, journal: Journal) -> None:
        """Repeating a reservation changes nothing; releasing gives all of it back, also when repeated."""
        one = make_reservation("h1", "web-7")
        journal.reserve(one, Bytes(100 * MIB))
        journal.reserve(one, Bytes(100 * MIB))
        assert list(journal.reservations()) == [one]
        journal.release(one.handover)
        journal.release(one.handover)
        journal.reserve(make_reservation("h2", "web-7"), Bytes(100 * MIB))
