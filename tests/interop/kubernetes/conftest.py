"""These are run by `make kubernetes` alone: none of their names begins with `test_`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
