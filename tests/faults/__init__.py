"""Faults, and that nothing is lost to them.

The long forms run from the checkout: ``python -m tests.faults.soak``, ``python -m
tests.faults.away``, ``python -m tests.faults.upgrade``.
"""

import sys
from pathlib import Path

# What tests share lies beside this; pytest finds it by itself.
if (SHARED := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.insert(0, SHARED)
