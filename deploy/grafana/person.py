"""What one person does, beside what is usual for them and for their role."""

from deploy.grafana.board import BEFORE, DAYS, HOURS, Board, Choice, Panel, chosen

_OWN = f"subject = {chosen('subject')}"
# Of all rows of somebody's day: the view `baselines` has one for each tenant and role.
_SEEN = "uniqCombined64ArrayMerge(patients)"
_BY_HOUR = ",\n  ".join(
    f'sumIf(decisions, toHour(hour) = {hour}) AS "{hour:02}"' for hour in range(24)
)

BOARD = Board(
    name="person",
    title="authz: a person",
    says="What one person did, beside what is usual for them and for their role.",
    since="now-30d",
    choices=(Choice("subject", "Person", "as records name them, letter by letter"),),
    panels=(
        Panel(
            "Requests by the hour", "bars", width=16, least="1h",
            sql=f"""SELECT $__timeInterval(hour) AS time, sumIf(decisions, kept.allowed) AS allowed,
  sumIf(decisions, NOT kept.allowed) AS denied
FROM activity_hourly AS kept WHERE {HOURS} AND {_OWN} GROUP BY time ORDER BY time""",
        ),
        Panel(
            "What of", "ranked", width=8,
            sql=f"""SELECT if(resource_type = '', '(none)', resource_type) AS type,
  sum(decisions) AS requests
FROM activity_hourly WHERE {HOURS} AND {_OWN} GROUP BY type ORDER BY requests DESC LIMIT 10""",
        ),
        Panel(
            "Patients a day", "series", width=12, least="1d",
            says="Usual is the median: of this person's sixty days before, and of all people of the"
            " same role on the same day.",
            sql=f"""SELECT toDateTime(own.day, 'UTC') AS time, own.seen AS patients,
  own.usual AS "own usual", peers.usual AS "usual of the role"
FROM (
  SELECT day, main AS role, seen, quantileOrNull(0.5)(seen)
    OVER (ORDER BY day ROWS BETWEEN 60 PRECEDING AND 1 PRECEDING) AS usual
  FROM (
    SELECT day, argMax(role, requests) AS main, {_SEEN} AS seen FROM baseline_daily
    WHERE {_OWN} AND {BEFORE} GROUP BY day)
) AS own
LEFT JOIN (
  SELECT day, role, quantile(0.5)(seen) AS usual FROM (
    SELECT day, role, subject, {_SEEN} AS seen FROM baseline_daily
    WHERE {DAYS} AND role GLOBAL IN (SELECT role FROM baseline_daily WHERE {_OWN} AND {DAYS})
    GROUP BY day, role, subject)
  GROUP BY day, role
) AS peers USING (day, role)
WHERE {DAYS} ORDER BY time""",
        ),
        Panel(
            "Hours of the day (UTC)", "heat", width=12, least="1d",
            sql=f"""SELECT $__timeInterval(hour) AS time,
  {_BY_HOUR}
FROM activity_hourly WHERE {HOURS} AND {_OWN} GROUP BY time ORDER BY time""",
        ),
        Panel(
            "Findings", "table",
            sql=f"""SELECT findings.time AS at, rule, lane, score_milli / 1000 AS score, evidence
FROM findings WHERE event = 'raised' AND {_OWN} AND $__timeFilter(sealed_at)
ORDER BY at DESC LIMIT 200""",
        ),
        Panel(
            "Denials", "table",
            sql=f"""SELECT decisions.time AS at, reason_code, reason, method, path, source_ip
FROM decisions WHERE NOT allowed AND {_OWN} AND $__timeFilter(sealed_at)
ORDER BY at DESC LIMIT 200""",
        ),
        Panel(
            "Networks and countries", "table", width=8,
            sql=f"""SELECT place, min(day) AS first, max(day) AS last, uniqExact(day) AS days
FROM baselines ARRAY JOIN arrayConcat(networks, countries) AS place
WHERE {_OWN} AND {DAYS} GROUP BY place ORDER BY days DESC, place LIMIT 100""",
        ),
        Panel(
            "Patients", "table", width=16, says="By token: in the request, or in the answer.",
            sql=f"""SELECT patient, uniqExact(decision_id) AS requests, countIf(break_glass) > 0
  AS "broken glass", min(log.time) AS first, max(log.time) AS last
FROM audit_log AS log ARRAY JOIN patients AS patient
WHERE kind IN ('decision', 'disclosure') AND {_OWN} AND $__timeFilter(sealed_at)
GROUP BY patient ORDER BY requests DESC, last DESC LIMIT 200""",
        ),
        Panel(
            "Timeline", "table", width=24, says="The newest 500 requests.",
            sql=f"""SELECT decisions.time AS at, allowed, purpose, reason, break_glass, method,
  path, resource_type, arrayStringConcat(patients, ' ') AS patients, source_ip, country
FROM decisions WHERE {_OWN} AND $__timeFilter(sealed_at) ORDER BY at DESC LIMIT 500""",
        ),
    ),
)  # fmt: skip
