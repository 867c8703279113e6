#!/bin/sh
# The policy in $POLICY: its tables by $SCHEMA, its Rego, its own tests, and what is dangerous in it.
set -eu
if [ -n "${SCHEMA:-}" ]; then
  check-jsonschema --schemafile "$SCHEMA" "$POLICY/data.json"
fi
opa fmt --list --fail "$POLICY"
opa check --strict "$POLICY"
authz policy test --policy "$POLICY" --coverage
authz policy check --policy "$POLICY" --decision "$DECISION"
