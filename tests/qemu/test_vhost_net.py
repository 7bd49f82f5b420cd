"""The kernel's back-end of a network card: opened, or why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.qemu.vhost_net import open_vhost, why_no_vhost


def test_a_host_without_it_says_how_to_get_it(tmp_path: Path) -> None:
    """By name, with the kernel's words."""
    with pytest.raises(Broken, match="nothing, cannot be opened: No such file or directory") as caught:
        open_vhost(tmp_path / "nothing")
    assert caught.value.fix == "`modprobe vhost_net`"
    assert str(why_no_vhost(tmp_path / "nothing")).endswith("No such file or directory: `modprobe vhost_net`")


def test_an_agent_that_may_not_open_it_is_told_so(tmp_path: Path) -> None:
    """Loading the module again would not help."""
    (tmp_path / "folder").mkdir()
    assert "let the agent open it" in str(why_no_vhost(tmp_path / "folder"))


def test_a_host_with_it(tmp_path: Path) -> None:
    """A descriptor for reading and writing that no other program inherits; asking leaves none open."""
    (tmp_path / "vhost-net").touch()
    assert why_no_vhost(tmp_path / "vhost-net") is None
    fd = open_vhost(tmp_path / "vhost-net")
    try:
        assert not os.get_inheritable(fd)
        assert os.write(fd, b"x") == 1
    finally:
        os.close(fd)
