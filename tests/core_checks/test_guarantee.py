"""The guarantee never claims more than both hosts' files allow."""

from __future__ import annotations

import dataclasses

import pytest
from tests.core_checks.conftest import DISK, make_files, with_file_there, with_probe, with_runtime, with_spec

from vmferry.core.checks import Case, guarantee
from vmferry.core.guest import Disk, IoPath, NetworkKind, UefiBoot


def with_identity(case: Case, identity: str) -> Case:
    """Return the case with one identity of the disk on both hosts."""
    files = tuple(dataclasses.replace(file, identity=identity) for file in make_files())
    return with_probe(with_runtime(case, source_files=files), files=files)


def fence(case: Case) -> str:
    """Return the disk fence that is promised."""
    return guarantee(case.guest, case.runtime, case.probe).disk_fence


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ("ext4:boot-1:8:1:12", "image locks (same kernel)"),
        ("tmpfs:boot-1:0:42:7", "image locks (same kernel)"),
        ("nfs4:server-1:/srv:4711", "image locks (NFSv4)"),
        ("nfs:server-1:/srv:4711", "none"),
        ("fuse.glusterfs:vol:12", "none"),
        ("unknown: statfs failed", "none"),
        ("", "none"),
    ],
)
def test_the_file_system_decides_the_fence(case: Case, identity: str, expected: str) -> None:
    """Each file system gives the fence that its locks can give, and an unknown one gives none."""
    assert fence(with_identity(case, identity)) == expected


def test_no_writable_disk_needs_no_fence(case: Case) -> None:
    """A guest that writes nowhere needs no fence, one that writes to its UEFI variables does."""
    reader = with_spec(case, disks=(Disk(DISK, read_only=True),))
    assert fence(reader) == "not needed"
    assert fence(with_spec(reader, boot=UefiBoot("/code.fd", "/vars.fd"))) == "none"


def test_different_files_give_no_fence(case: Case) -> None:
    """When the two hosts do not certainly mean one file, no lock is promised."""
    assert fence(with_file_there(case, DISK, identity="nfs4:server-2:/srv:4711")) == "none"


def test_the_weakest_disk_decides(case: Case) -> None:
    """One disk that nobody knows takes the promise away from all."""
    two = with_spec(case, disks=(Disk(DISK), Disk("/srv/vmferry/other.qcow2")))
    assert fence(two) == "none"


def test_the_sentence_says_owner_way_back_and_fence(case: Case) -> None:
    """A person reads who commits, until when there is a way back, and what the fence is worth."""
    promise = guarantee(case.guest, case.runtime, case.probe)
    assert (promise.commit_owner, promise.rollback_until) == ("vmferry", "LOADED")
    assert "web-7" in promise.sentence
    assert "until a host was silent for its lease" in promise.sentence


def test_the_risk_of_postcopy_is_told(case: Case) -> None:
    """Where post-copy is allowed the sentence says that both hosts are needed, and nowhere else."""
    for postcopy in (True, False):
        promised = guarantee(case.guest, case.runtime, case.probe, postcopy=postcopy)
        assert ("both hosts are needed until the last page" in promised.sentence) is postcopy


def test_functions_are_told(case: Case) -> None:
    """What carries the traffic meanwhile is told before anything begins."""
    nic = dataclasses.replace(case.guest.spec.nics[0], io_path=IoPath.SRIOV_VF, physical_network="fabric")
    with_standby = with_spec(case, nics=(nic,))
    alone = with_spec(case, nics=(dataclasses.replace(nic, network=NetworkKind.NONE, bridge=None),))
    for asked, words in ((with_standby, "nic0 runs on its standby"), (alone, "nic0 has no network")):
        promise = guarantee(asked.guest, asked.runtime, asked.probe)
        assert f"{words} from before the first round until it has a function of fabric there" in promise.sentence
    assert "fabric" not in guarantee(case.guest, case.runtime, case.probe).sentence
