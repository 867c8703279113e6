#!/bin/sh
# The log is intact: the database's (AUTHZ_STORE), or an export's in $FROM. The result goes into
# evidence/, and to $EVIDENCE if that is a directory, such as write-once storage.
set -eu
mkdir -p evidence
code=0
if [ -n "${FROM:-}" ]; then
  authz verify --from "$FROM" --trust "$TRUST" --json > evidence/verification.json || code=$?
else
  authz verify --trust "$TRUST" --state "$STATE" --json > evidence/verification.json || code=$?
fi
{
  echo "at $(date -u +%Y-%m-%dT%H:%M:%SZ)"
  echo "exit code $code"
  sha256sum evidence/verification.json "$TRUST"
} > evidence/about.txt
cat evidence/about.txt
if [ -n "${EVIDENCE:-}" ]; then
  cp -r evidence "$EVIDENCE/$(date -u +%Y-%m-%dT%H%M%SZ)"
fi
case "$code" in
  0) echo "intact" ;;
  1) echo "NOT intact: see evidence/verification.json" ;;
  *) echo "could not tell: this is no proof of anything" ;;
esac
exit "$code"
