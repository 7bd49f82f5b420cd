"""Breaks real hand-overs on purpose, in every state, and judges what became of the guest."""
