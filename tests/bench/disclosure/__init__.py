"""What it costs to see whose data answers hold: no ext_proc, observe and hold, on the whole stack.

    python -m tests.bench.disclosure [--requests 1000] [--rounds 3] [--stream 100]

Wants `h2load` (nghttp2-client). One request is in flight at a time, through real Envoy; of each
figure the least of all rounds is shown, which take turns. `--stream` shows one answer of so many MB
in each mode that takes it, and what that does to ext-authz's memory.
"""
