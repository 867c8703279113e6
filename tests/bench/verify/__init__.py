"""How fast a log is verified: ``python -m tests.bench.verify [--records N] [--leaves N]``."""
