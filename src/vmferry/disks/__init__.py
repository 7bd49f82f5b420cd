"""Disk images as files of this host."""
