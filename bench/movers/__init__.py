"""The movers of `./run bench migrate`: ours, libvirt's, and plain QEMU."""
