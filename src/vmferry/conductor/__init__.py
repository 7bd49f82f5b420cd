"""Drives hand-overs: carries effects out, feeds what happened back, recovers after a restart."""
