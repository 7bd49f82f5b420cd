"""Leases of sanlock for the images that a guest writes (`ports.disk_leases`)."""
