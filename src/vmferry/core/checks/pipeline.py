"""A stream that is to go through commands: both hosts have them, and it is encrypted unless it was said not to be."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case, name_list
from vmferry.core.errors import Blocker


def check_pipeline(case: Case) -> Iterator[Blocker]:
    """Both halves of the pipeline are configured; nobody sends a guest in the clear who did not ask for that."""
    name = case.stream.pipeline
    if name is None:
        return
    for host in (case.source, case.destination):
        if name not in host.pipelines:
            yield Blocker(
                "stream.pipeline-missing",
                f"Host {host.name} has no pipeline {name}; it has {name_list(list(host.pipelines))}",
                f"write [migration.pipelines.{name}] into its agent.toml and restart the agent (guests run on)",
            )
        elif case.stream.encrypted and not host.pipelines[name]:
            yield Blocker(
                "stream.pipeline-in-the-clear",
                f"Pipeline {name} on {host.name} does not say that it encrypts, and QEMU cannot: a pipe goes one way",
                "move with --plain, or through a pipeline that encrypts (encrypts = true)",
            )
