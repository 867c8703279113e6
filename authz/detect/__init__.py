"""Detection: what people usually do, what is unusual, and which of it somebody should look at.

A record becomes an `Event`, the feeds say whether there is a reason for it, the people's baselines
say what is usual, each rule says what it suspects, and the lanes keep what is worth an alert.
"""
