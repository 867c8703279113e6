"""What is stored, in ClickHouse."""

import os

# Or the driver makes a table of all days of four centuries whenever a command starts.
os.environ.setdefault("CLICKHOUSE_DRIVER_LASY_DATE_LUT", "true")  # [sic]
