"""`vmferry host prepare`: whether this machine is ready for what guests are to have, and making it so."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.options import AsJson
from vmferry.cli.output import print_json
from vmferry.core.errors import BadInput, Blocked, Blocker


def prepare(
    *,
    iommu: Annotated[bool, typer.Option("--iommu", help="Look at the IOMMU, which keeps devices' DMA apart.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Tell the kernel to use it, from its next start on. Needs root, and GRUB.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what keeps this machine from giving devices to guests: its firmware or its kernel. Asks no agent.

    Ends with 3 when something does. After a reboot it tells whether that has helped.
    """
    if not iommu:
        raise BadInput("Nothing to prepare was named", fix="give --iommu")
    from vmferry.core.iommu import IommuState, look_at
    from vmferry.hostdev import Sysfs
    from vmferry.hostdev.iommu import iommu_facts, write_options

    sysfs = Sysfs()
    found = look_at(iommu_facts(sysfs))
    if write and found.state is IommuState.KERNEL:
        file = write_options(found.options)
        found = look_at(iommu_facts(sysfs))
        if not as_json:
            print(f"written: {file}")
    if found.state not in {IommuState.READY, IommuState.REBOOT}:
        blocker = Blocker(f"iommu.{found.state}", found.what, found.fix or "")
        raise Blocked("This machine cannot give devices to guests", blockers=(blocker,))
    if as_json:
        print_json({"state": found.state, "what": found.what, "fix": found.fix})
    else:
        print(found.what if found.fix is None else f"{found.what}; {found.fix}")
