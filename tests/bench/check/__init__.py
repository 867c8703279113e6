"""The Check path against opa-envoy-plugin, in one run and one table.

    python -m tests.bench.check [--plugin PROGRAM] [--checks N] [--rounds N] [--memory]

Needs OPA, ghz and h2load (Debian's nghttp2-client). `PROGRAM` is opa-envoy-plugin, built elsewhere;
without it only our rows are printed. The machine should be otherwise idle: nothing here is a test.
"""
