"""The attacks: one file per kind, and one row per attack in `table.py`."""
