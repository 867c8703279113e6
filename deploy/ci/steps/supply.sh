#!/bin/sh
# What is installed beside authz: known vulnerabilities, and licences, into evidence/.
set -eu
mkdir -p evidence
pip-licenses --format=json --with-urls --output-file=evidence/licences.json
# --strict: what the database of advisories does not know is a failure, and not "none known".
pip-audit --strict --desc --format=json --output=evidence/vulnerabilities.json ${PIP_AUDIT:-}
