"""What it costs to see whose data answers hold: no ext_proc, observe and hold, on the whole stack.

    python -m tests.bench.disclosure [--requests 100] [--rounds 3] [--stream 100]

Requests go one at a time through real Envoy, with time between them to read the answer before: what
is observed costs CPU, and where none is left it delays the next Check. Of each figure the least of
all rounds is shown, which take turns. `--stream` shows one answer of so many MB
in each mode that takes it, and what that does to ext-authz's memory.
"""
