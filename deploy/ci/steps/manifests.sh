#!/bin/sh
# What is rolled out is valid: directories of kustomize in $MANIFESTS, authz's configuration in $CONFIG,
# Envoy's in $ENVOY, alert rules in $RULES. What is empty is passed over.
set -eu
built=$(mktemp)
trap 'rm -f "$built"' EXIT
for directory in ${MANIFESTS:-}; do
  kustomize build "$directory" > "$built"
  # Not by the file's name: kubeconform passes over one that does not end in .yaml, and is content.
  kubeconform -strict -summary ${KUBECONFORM:-} - < "$built"
done
for file in ${CONFIG:-}; do
  authz config --config "$file" > /dev/null
  echo "$file is a configuration"
done
for file in ${ENVOY:-}; do
  envoy --mode validate --config-path "$file"
  authz doctor --envoy-config "$file"
done
for file in ${RULES:-}; do
  promtool check rules "$file"
done
