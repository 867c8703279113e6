#!/bin/sh
# users.sh PASSWORDS [OPTION OF clickhouse-client]...
#
# Makes the database `authz`, its roles and its users; for an administrator, and safe to repeat.
# PASSWORDS is a directory with a file NAME.password for each user. Only their SHA-256 leave it.
# The administrator's own password is in CLICKHOUSE_PASSWORD.
set -eu
passwords=$1
shift
here=$(dirname "$0")/sql
hash() { tr -d '\n' < "$passwords/$1.password" | sha256sum | cut -d ' ' -f 1; }

clickhouse-client "$@" --query 'CREATE DATABASE IF NOT EXISTS authz'
clickhouse-client "$@" --database authz --queries-file "$here/roles.sql" "$here/limits.sql"
clickhouse-client "$@" --database authz --queries-file "$here/users.sql" \
  --param_auditor "$(hash auditor)" --param_backup "$(hash backup)" \
  --param_feeds "$(hash feeds)" --param_grafana "$(hash grafana)" \
  --param_migrator "$(hash migrator)" --param_reader "$(hash reader)" \
  --param_receiver "$(hash receiver)" --param_retention "$(hash retention)" \
  --param_watch "$(hash watch)"
