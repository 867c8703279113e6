#!/bin/sh
# Runs all of authz on this host, out of the directory that `authz init --platform local` has made:
# ClickHouse, receiver, ext-authz, Envoy, and the sample service unless envoy.env names yours (then set
# SAMPLE= there). Ctrl-C ends it, in the order that loses nothing. It needs `authz`, with the extra
# `demo`, and curl on the PATH.
set -eu
cd "$(dirname "$0")"
umask 077
set -a
. ./envoy.env
set +a
for program in authz envoy curl setsid; do
    command -v "$program" > /dev/null || { echo "$program is not on the PATH" >&2; exit 2; }
done
bin=$(dirname "$(readlink -f "$(command -v authz)")")
python=${PYTHON:-$bin/python3}
mkdir -p data/logs
children=

begin() { # NAME COMMAND...: in a session of its own, so that Ctrl-C does not reach it
    name=$1
    shift
    setsid "$@" >> "data/logs/$name.log" 2>&1 &
    eval "$name=$!"
    children="$children $name:$!"
}

end() { # NAME
    eval "pid=\${$1:-}"
    [ -n "$pid" ] && kill "$pid" 2>/dev/null && wait "$pid" || true
}

stop() {
    trap '' INT TERM HUP
    [ -S "$ADMIN_SOCKET" ] && ./drain.sh "$ADMIN_SOCKET" 60 || true
    for name in envoy ext_authz receiver service clickhouse; do end "$name"; done
}

interrupted() {
    echo stopping
    stop
    exit 0
}
trap interrupted INT TERM HUP

failed() {
    echo "$1; see $PWD/data/logs" >&2
    stop
    exit 1
}

alive() {
    for child in $children; do
        kill -0 "${child#*:}" 2>/dev/null || failed "${child%%:*} has ended"
    done
}

until_true() { # for half a minute
    left=150
    until "$@"; do
        alive
        left=$((left - 1))
        [ "$left" -gt 0 ] || failed "a part does not start"
        sleep 0.2
    done
}

listens() { # HOST:PORT
    status=0
    curl --silent --output /dev/null --max-time 1 "http://$1/" || status=$?
    [ "$status" -ne 7 ]
}

live() { # a request without a token would be on record
    curl --silent --max-time 1 --unix-socket "$ADMIN_SOCKET" http://envoy/ready | grep -q LIVE
}

stored() { grep -q '"store"' data/store.json; }

authz envoy-config --output data/envoy.yaml
: > data/store.json
if [ -n "${SAMPLE:-}" ]; then
    begin service "$python" -m authz.demo.fhir --listen "$SERVICE_HOST:$SERVICE_PORT"
fi
begin clickhouse sh -c 'exec authz serve clickhouse --data-dir data/clickhouse --json > data/store.json'
until_true stored
AUTHZ_STORE=$(sed -n 's/.*"store": "\([^"]*\)".*/\1/p' data/store.json)
export AUTHZ_STORE
# What commands take as --config.
cat > data/authz.yaml <<END
store: $AUTHZ_STORE
ext_authz: {receiver: "$RECEIVER_HOST:$RECEIVER_PORT"}
privacy: {key: keys/privacy.key}
END
begin receiver authz serve receiver --config authz.yaml --data-dir data/receiver
until_true listens "$RECEIVER_HOST:$RECEIVER_PORT"
begin ext_authz env -u AUTHZ_STORE authz serve ext-authz --config authz.yaml --data-dir data/ext-authz
until_true listens "$AUTHZ_HOST:$AUTHZ_PORT"
begin envoy envoy -c data/envoy.yaml --log-level warning --concurrency 1 --disable-hot-restart \
    --drain-time-s 5 --drain-strategy immediate
until_true live
echo "ready: http://$LISTEN_ADDRESS:$LISTEN_PORT"
while alive; do
    sleep 1 &
    wait $! || true
done
