#!/bin/sh
# bundle.tar.gz of the policy in $POLICY, signed with $SIGNING_KEY (the key itself, PEM), and checked by
# the public key in the file $BUNDLE_KEY, as OPA will.
set -eu
umask 077
key=$(mktemp)
trap 'rm -f "$key" checked.tar.gz' EXIT
printf '%s\n' "$SIGNING_KEY" > "$key"
authz policy build --policy "$POLICY" --decision "$DECISION" --signing-key "$key" \
  --revision "$REVISION" --output bundle.tar.gz
opa build --bundle bundle.tar.gz --verification-key "$BUNDLE_KEY" --signing-alg ES256 \
  --output checked.tar.gz
