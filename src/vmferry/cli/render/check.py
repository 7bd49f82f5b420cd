"""The answer to "may it move" as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmferry.cli.render.link import link_text


def check_text(guest: str, source: str, destination: str, reply: Mapping[str, Any]) -> str:
    """Return every blocker with its fix, what is known of the link, and the guarantee when there is one."""
    blockers = reply.get("blockers", [])
    if blockers:
        count = "1 blocker" if len(blockers) == 1 else f"{len(blockers)} blockers"
        lines = [f"{guest} cannot move from {source} to {destination}: {count}; nothing was touched"]
    else:
        lines = [f"{guest} can move from {source} to {destination}"]
    for blocker in blockers:
        lines += ["", f"{blocker['code']}", f"  what  {blocker['what']}", f"  fix   {blocker['fix']}"]
    lines += [f"left out of the stream: {one}" for one in reply.get("left_out", ())]
    if (link := reply.get("link")) is not None:
        lines += ["", link_text(link)]
    promise = reply.get("guarantee")
    if promise is not None:
        lines += [
            "",
            "guarantee",
            f"  commit_owner    {promise['commit_owner']}",
            f"  rollback_until  {promise['rollback_until']}",
            f"  disk_fence      {promise['disk_fence']}",
            f"  {promise['sentence']}",
        ]
    return "\n".join(lines)
