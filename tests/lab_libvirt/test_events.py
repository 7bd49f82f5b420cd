"""What `virsh event` prints, as events."""

from __future__ import annotations

from vmferry.lab.libvirt.events import parse_events

PRINTED = """\
2026-11-30 14:05:45.378+0000: event 'lifecycle' for domain 'web-7': Suspended Migrated
2026-11-30 14:05:45.400+0000: event 'job-completed' for domain 'web-7':
\toperation: 5
\tdowntime: 86
no event at all
"""


def test_each_event_has_its_time_and_its_words() -> None:
    """Lines that go on belong to the event before them; what is none is passed over."""
    first, second = parse_events(PRINTED, "source")
    assert (first.host, first.event, first.words) == ("source", "lifecycle", "Suspended Migrated")
    assert (second.event, second.words) == ("job-completed", "operation: 5 downtime: 86")
    assert round((second.at - first.at) * 1000) == 22
    assert first.line(first.at - 1.5) == {
        "t": "event",
        "at_ms": 1500.0,
        "host": "source",
        "event": "lifecycle",
        "words": "Suspended Migrated",
    }
