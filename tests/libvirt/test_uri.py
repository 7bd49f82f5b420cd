"""Which of libvirt's addresses are let through."""

from __future__ import annotations

import pytest

from vmferry.core.errors import BadInput
from vmferry.libvirt.uri import checked_uri, stream_uri


@pytest.mark.parametrize(
    "text",
    [
        "qemu:///system",
        "qemu:///session",
        "qemu+unix:///system?socket=/run/libvirt/libvirt-sock",
        "qemu+tls://host-a/system",
        "qemu+tcp://10.0.0.1:16509/system",
        "qemu+tcp://[fd00::1]/system",
        "qemu+ssh://root@host-a:2222/system?keyfile=/k&no_tty=0",
        "test:///default",
    ],
)
def test_known_addresses_are_taken_as_they_are(text: str) -> None:
    """Nothing is added to them."""
    assert checked_uri(text) == text


def test_ssh_never_asks_at_the_terminal() -> None:
    """A password that nobody types would hang the command, and an agent has no terminal."""
    assert checked_uri("qemu+ssh://host-a/system") == "qemu+ssh://host-a/system?no_tty=1"
    assert checked_uri("qemu+ssh://host-a/system?keyfile=/k") == "qemu+ssh://host-a/system?keyfile=/k&no_tty=1"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("xen:///system", "scheme 'xen'"),
        ("qemu+ext://host-a/system?command=/bin/sh", "scheme 'qemu+ext'"),
        ("qemu+ssh://host-a/system?command=/tmp/x", "command is not let through"),
        ("qemu+ssh://host-a/system?netcat=/tmp/x&no_verify=1", "netcat, no_verify is not"),
        ("qemu+tls://host-a/system?no_verify=1", "no_verify"),
        ("qemu+ssh://host-a/system?keyfile=/k;command=/tmp/x", "';' is in no"),
        ("qemu+ssh://host-a/system?comm%61nd=/tmp/x", "command is not let through"),
        ("qemu+ssh://host-a/system?Command=/tmp/x", "Command is not let through"),
        ("qemu+ssh://host-a/system#x", "'#' is in no"),
        ("qemu+ssh://-oProxyCommand=x/system", "no host, or one that is none"),
        ("qemu+ssh://-l@host-a/system", "no host"),
        ("qemu+ssh:///system", "no host"),
        ("qemu://host-a/system", "no host"),
        ("qemu+ssh://me:secret@host-a/system", "password"),
        ("qemu+tcp://host-a:99999/system", "Port"),
        ("qemu+tcp://host a/system", "' ' is in no"),
        ("host-a", "scheme ''"),
        ("", "scheme ''"),
    ],
)
def test_what_could_start_a_program_or_trust_anybody_is_refused(text: str, word: str) -> None:
    """It is bad input that says what is wrong; a password is not repeated."""
    with pytest.raises(BadInput) as caught:
        checked_uri(text)
    assert word in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("daemon", "stream"),
    [
        ("qemu+ssh://root@host-b/system", "tcp://host-b"),
        ("qemu+tcp://10.77.0.2:16509/system", "tcp://10.77.0.2"),
        ("qemu+tls://[fd00::2]/system", "tcp://[fd00::2]"),
        ("qemu:///system", None),
    ],
)
def test_the_stream_goes_where_the_daemon_is(daemon: str, stream: str | None) -> None:
    """The host alone: port and user are the daemon's."""
    assert stream_uri(daemon) == stream
