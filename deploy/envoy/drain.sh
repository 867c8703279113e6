#!/bin/sh
# Lets an Envoy finish, so that nothing of its access log is lost when it is stopped after this:
#
#     drain.sh ADMIN_SOCKET [SECONDS] && kill -TERM "$ENVOY_PID"
#
# Envoy must run with `--drain-time-s 5 --drain-strategy immediate`: for so long it goes on taking
# connections (by default ten minutes), each answer tells its client to make a new one elsewhere,
# and then it listens no more. This waits until then, until no request or TCP connection is under
# way, and until the log has been sent: after more than two seconds without a new entry, all is
# flushed. HTTP connections that only stay open are not waited for.
#
# Exit code 0: all is sent. 1: something is still under way after SECONDS (90, more than a request
# may last). 2: Envoy does not answer, or drains for longer than SECONDS.
set -eu

socket=${1:?usage: drain.sh ADMIN_SOCKET [SECONDS]}
seconds=${2:-90}

admin() {
    curl --fail --silent --show-error --max-time 5 --globoff --unix-socket "$socket" "$@"
}

# How many requests and TCP connections are under way, and the counters of the log.
under_way() {
    stats=$(admin "http://envoy/stats?filter=downstream_(cx|rq)_active\$|grpc_access_log") || exit 2
    echo "$stats" | awk -F ': ' '
        /^(http|listener)[.]admin[.]/ || /[.]worker_[0-9]+[.]/ { next }
        /^http[.].*_rq_active/ { requests += $2 }
        /^http[.].*_cx_active/ { tcp -= $2 }
        /^listener[.].*_cx_active/ { tcp += $2 }
        /grpc_access_log/ { counters = counters " " $2 }
        END { print (requests + (tcp > 0 ? tcp : 0)) counters }'
}

info=$(admin http://envoy/server_info) || exit 2
drain=$(echo "$info" | sed -n 's/.*"drain_time": "\([0-9]*\)s".*/\1/p')
if [ "${drain:-600}" -ge "$seconds" ]; then
    echo "Envoy drains for ${drain:-600} s: start it with --drain-time-s 5 --drain-strategy immediate" >&2
    exit 2
fi
admin -X POST "http://envoy/drain_listeners?graceful" >/dev/null || exit 2

passed=0 same=0 before=
while [ "$passed" -lt "$seconds" ]; do
    sleep 1
    passed=$((passed + 1))
    now=$(under_way) || exit 2
    case $now in
        "0 "*) [ "$now" = "$before" ] && same=$((same + 1)) || same=0 ;;
        *) same=0 ;;
    esac
    before=$now
    [ "$passed" -gt "$drain" ] && [ "$same" -ge 3 ] && exit 0
done
echo "after $seconds s still under way in Envoy: ${now%% *}" >&2
exit 1
