"""The receiver: takes records in, and is the only one that appends to a log."""
