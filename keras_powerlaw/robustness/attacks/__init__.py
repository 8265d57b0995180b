"""The attacks: one file for each kind, and one row for each in `table.py`."""
