"""Hosts without hardware: two hosts on one machine, the built-in guests, and the demonstration."""
