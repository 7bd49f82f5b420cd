"""A small world in memory in which hand-overs are lived through by the thousand: two hosts and a bad network."""
