"""Faults in every phase of a libvirt domain's move: what is expected, how it is done to real daemons, what is seen."""
