"""What people and programs see over HTTP: so far a log's own read API (C2SP tlog-tiles)."""
