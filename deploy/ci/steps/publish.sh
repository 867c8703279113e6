#!/bin/sh
# bundle.tar.gz to the server: under its revision, to go back to, and as the one that OPA takes.
set -eu
for name in "$REVISION.tar.gz" bundle.tar.gz; do
  curl --fail --silent --show-error --oauth2-bearer "$BUNDLE_TOKEN" \
    --upload-file bundle.tar.gz "$BUNDLE_URL/$name"
done
