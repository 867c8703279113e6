"""How it is: what was asked and decided, what is missing, what was found."""

from deploy.grafana.board import HOURS, OF_TENANT, TENANT, Board, Panel

_NUMBERS = (
    Panel(
        "Requests", "number", width=4,
        sql=f"SELECT sum(decisions) AS requests FROM activity_hourly WHERE {HOURS} AND {OF_TENANT}",
    ),
    Panel(
        "Denied", "number", width=4, unit="percentunit",
        sql=f"""SELECT sumIf(decisions, NOT allowed) / greatest(sum(decisions), 1) AS denied
FROM activity_hourly WHERE {HOURS} AND {OF_TENANT}""",
    ),
    Panel(
        "Findings to act on", "number", width=4, red_from=1,
        says="Of lane act, and neither explained nor confirmed by somebody else.",
        sql=f"""SELECT count() AS open FROM (
  SELECT DISTINCT concat(origin, '@', toString(index)) AS id FROM findings
  WHERE event = 'raised' AND lane = 'act' AND $__timeFilter(sealed_at) AND {OF_TENANT}
) WHERE id GLOBAL NOT IN (
  SELECT records[1] FROM notices WHERE event IN ('finding_explained', 'finding_confirmed')
    AND JSONExtractString(details, 'by') != subject AND sealed_at >= $__fromTime)""",
    ),
    Panel(
        "Gaps not closed", "number", width=4, red_from=1,
        says="What the two accounts of requests do not agree on: docs/completeness.md.",
        sql="""SELECT greatest(toInt64(sumIf(told, event = 'gap'))
  - toInt64(sumIf(told, event = 'gap_closed')), 0) AS gaps
FROM (SELECT event, JSONExtractUInt(details, 'count') AS told FROM notices
  WHERE event IN ('gap', 'gap_closed') AND $__timeFilter(sealed_at))""",
    ),
    Panel(
        "Oldest newest checkpoint", "number", width=4, unit="s", red_from=60,
        says="Of the log that is farthest behind, of those that have one in this time.",
        sql="""SELECT maxOrNull(age) AS age FROM (
  SELECT origin, dateDiff('second', max(written_at), now64(6)) AS age
  FROM checkpoints WHERE $__timeFilter(written_at) GROUP BY origin)""",
    ),
    Panel(
        "Unexplained, last day", "number", width=4, unit="percentunit", since="7d",
        says="Of accesses to charts, each person's and chart's once: no feed explains them.",
        sql="""SELECT argMaxOrNull(JSONExtractUInt(details, 'unexplained')
  / greatest(JSONExtractUInt(details, 'charts'), 1), notices.time) AS unexplained
FROM notices WHERE event = 'watch_day' AND $__timeFilter(sealed_at)""",
    ),
)  # fmt: skip

BOARD = Board(
    name="overview",
    title="authz: overview",
    says="What was asked and decided, what is missing, what was found.",
    since="now-7d",
    choices=(TENANT,),
    panels=(
        *_NUMBERS,
        Panel(
            "Requests by the hour", "bars", width=16, least="1h",
            sql=f"""SELECT $__timeInterval(hour) AS time, sumIf(decisions, kept.allowed) AS allowed,
  sumIf(decisions, NOT kept.allowed) AS denied
FROM activity_hourly AS kept WHERE {HOURS} AND {OF_TENANT} GROUP BY time ORDER BY time""",
        ),
        Panel(
            "Findings by lane", "bars", width=8, by="lane", least="1d", since="30d",
            sql=f"""SELECT $__timeInterval(sealed_at) AS time, lane, count() AS findings
FROM findings WHERE event = 'raised' AND $__timeFilter(sealed_at) AND {OF_TENANT}
GROUP BY time, lane ORDER BY time, lane""",
        ),
        Panel(
            "Top reasons", "ranked", width=8, says="The policy's words, for yes and for no.",
            sql=f"""SELECT if(reason = '', reason_code, reason) AS why, count() AS requests
FROM decisions WHERE $__timeFilter(sealed_at) AND {OF_TENANT}
GROUP BY why ORDER BY requests DESC LIMIT 10""",
        ),
        Panel(
            "Top resource types", "ranked", width=8,
            sql=f"""SELECT if(resource_type = '', '(none)', resource_type) AS type,
  sum(decisions) AS requests
FROM activity_hourly WHERE {HOURS} AND {OF_TENANT}
GROUP BY type ORDER BY requests DESC LIMIT 10""",
        ),
        Panel(
            "Unexplained accesses to charts", "series", width=8, unit="percentunit", since="60d",
            least="1d",
            says="If it is not small, a feed is missing: docs/detection.md.",
            sql="""SELECT toDateTime(toDate(JSONExtractString(details, 'date')), 'UTC') AS time,
  max(JSONExtractUInt(details, 'unexplained'))
    / greatest(max(JSONExtractUInt(details, 'charts')), 1) AS unexplained
FROM notices WHERE event = 'watch_day' AND $__timeFilter(sealed_at) GROUP BY time ORDER BY time""",
        ),
        Panel(
            "Gaps by kind", "table", says="What each means and what to do: docs/completeness.md.",
            sql="""SELECT rule AS kind, sumIf(told, event = 'gap') AS gaps,
  sumIf(told, event = 'gap_closed') AS closed, max(at) AS last
FROM (SELECT rule, event, sealed_at AS at, JSONExtractUInt(details, 'count') AS told FROM notices
  WHERE event IN ('gap', 'gap_closed') AND $__timeFilter(sealed_at))
GROUP BY kind ORDER BY gaps DESC""",
        ),
        Panel(
            "Logs", "table", says="How much is under a signed checkpoint, and since when.",
            sql="""SELECT origin AS log, max(size) AS records, max(written_at) AS checkpoint,
  dateDiff('second', checkpoint, now64(6)) AS age
FROM checkpoints WHERE $__timeFilter(written_at) GROUP BY log ORDER BY age DESC""",
        ),
    ),
)  # fmt: skip
