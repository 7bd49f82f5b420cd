"""The grid of `./run bench migrate`: its cells, its observers, its rounds, and what is made of the figures."""
