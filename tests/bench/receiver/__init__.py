"""The receiver under load: what an entry costs, in CPU, time and bytes, in one table.

    python -m tests.bench.receiver [--entries N] [--rounds R] [--memory] [--json FILE]
    python -m tests.bench.receiver.layout     how ClickHouse keeps a record: sort orders and codecs
    python -m tests.bench.receiver.capture    records anew what is replayed (needs h2load)

What is replayed was recorded from Envoy under load (`capture`), and each entry and decision gets
values of its own (`replay`). The machine should be otherwise idle: nothing here is a test.
"""
