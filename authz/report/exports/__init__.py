"""Exports of records: how they are written, what is said beside them, and how that is checked."""
