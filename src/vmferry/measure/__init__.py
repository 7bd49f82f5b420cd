"""Outside-clock observers: how long a guest was silent, and how long the network was, as kernel stamps show it."""
