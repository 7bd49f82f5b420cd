"""The hand-over: exactly one owner. States, events, effects and the table that joins them (table.py: the theory)."""
