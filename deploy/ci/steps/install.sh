#!/bin/sh
# What the other steps call: $PACKAGES by pip, $PROGRAMS by Go.
set -eu
python -m pip install --quiet $PACKAGES
for program in ${PROGRAMS:-}; do
  go install "$program"
done
