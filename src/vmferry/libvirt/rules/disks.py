"""What disks say beyond image, format, bus, cache and backing images.

Source: libvirt docs/formatdomain.rst (9.0), section Hard drives, floppy disks, CDROMs.
"""

from __future__ import annotations

from vmferry.libvirt.findings import STAY
from vmferry.libvirt.rules.rule import Rule, asked, left_out, refused, silent

_QUEUE = "how the host serves the disk: as QEMU does by default"

RULES: dict[str, Rule] = {
    "devices/disk/@snapshot": left_out("what libvirt does with it in a snapshot"),
    "devices/disk/target/@tray": left_out("whether the drive stood open"),
    "devices/disk/target/@removable": asked("disk"),
    "devices/disk/target/@rotation_rate": asked("disk"),
    "devices/disk/driver/@io": left_out(_QUEUE),
    "devices/disk/driver/@iothread": left_out(_QUEUE),
    "devices/disk/driver/@ioeventfd": left_out(_QUEUE),
    "devices/disk/driver/@event_idx": asked("disk"),
    "devices/disk/driver/@queues": asked("disk"),
    "devices/disk/driver/@queue_size": asked("disk"),
    "devices/disk/driver/@iommu": asked("disk"),
    "devices/disk/driver/@ats": asked("disk"),
    "devices/disk/driver/@packed": asked("disk"),
    "devices/disk/driver/@page_per_vq": asked("disk"),
    "devices/disk/driver[discard=unmap]/@discard": silent("as guests have it"),
    "devices/disk/driver/@discard": left_out("what the guest discards is freed in the image"),
    "devices/disk/driver/@discard_no_unref": left_out("how freed clusters are kept"),
    "devices/disk/driver/@detect_zeroes": left_out("zeroes are written as they come"),
    "devices/disk/driver/@copy_on_read": left_out("nothing is copied up from a backing image by reading"),
    "devices/disk/driver/@error_policy": left_out(
        "a full disk pauses the guest, other errors are the guest's to handle"
    ),
    "devices/disk/driver/@rerror_policy": left_out("errors of reading are the guest's to handle"),
    "devices/disk/driver/metadata_cache": left_out(_QUEUE),
    **{f"devices/disk/{'backingStore/' * depth}format/metadata_cache": left_out(_QUEUE) for depth in (1, 2, 3)},
    "devices/disk/driver/iothreads": left_out(_QUEUE),
    "devices/disk/source/@startupPolicy": left_out("an image that is missing keeps the guest from starting"),
    "devices/disk/source/@index": silent("libvirt's number of the image"),
    "devices/disk/source/seclabel": left_out("labels are the host's"),
    "devices/disk/source/encryption": refused(
        "an encrypted image: no key can be given", "decrypt it into another image"
    ),
    "devices/disk/source/reservations": refused(
        "reservations of a SCSI disk, by which guests share it: not yet in this version", STAY
    ),
    "devices/disk/source/slices": refused("a part of a file as a disk", "copy the part into an image of its own"),
    "devices/disk/encryption": refused("an encrypted image: no key can be given", "decrypt it into another image"),
    "devices/disk/auth": refused("an image behind a password", "bring it to storage that the hosts mount"),
    "devices/disk/shareable": refused(
        "a disk that several guests write, which locks would keep to one of them: not yet in this version", STAY
    ),
    "devices/disk/transient": refused(
        "what the guest writes is thrown away: here it would stay", "take it out of the XML"
    ),
    "devices/disk/mirror": refused("the image is being copied right now", "wait for the block job, or abort it"),
    "devices/disk/iotune": left_out("limits of the disk: not yet in this version"),
    "devices/disk/blockio": refused("sectors of another size: the guest would not find its partitions", STAY),
    "devices/disk/geometry": refused("cylinders, heads and sectors of its own", STAY),
    "devices/disk/serial": asked("disk"),
    "devices/disk/wwn": asked("disk"),
    "devices/disk/vendor": asked("disk"),
    "devices/disk/product": asked("disk"),
}
