"""The `vmferry` command: asks agents and shows what they say. Closing it changes nothing that runs.

Each command imports what it needs when it runs: `vmferry --help` must be there at once.
"""
