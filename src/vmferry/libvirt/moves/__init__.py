"""Moves of domains that libvirt carries out: what it is asked for, and what its words mean for our policies."""
