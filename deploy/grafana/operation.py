"""How the machinery does: records, logs, delays, gaps, disk."""

from deploy.grafana.board import Board, Panel

_COUNTS = ("matched", "unanswered", "unseen", "open", "missing", "unexplained")

BOARD = Board(
    name="operation",
    title="authz: operation",
    says="Records, logs, delays, gaps and disk.",
    since="now-6h",
    panels=(
        Panel(
            "Records a second, by kind", "series", by="kind",
            sql="""SELECT $__timeInterval(sealed_at) AS time, kind,
  count() / $__interval_s AS records
FROM audit_log WHERE $__timeFilter(sealed_at) GROUP BY time, kind ORDER BY time, kind""",
        ),
        Panel(
            "Until a decision is sealed", "series", unit="s",
            says="From the decision to its place in the log. Clocks that differ show here too.",
            sql="""SELECT $__timeInterval(sealed_at) AS time, quantile(0.5)(delay) AS p50,
  quantile(0.99)(delay) AS p99, max(delay) AS most
FROM (SELECT sealed_at, dateDiff('millisecond', time, sealed_at) / 1000 AS delay FROM decisions
  WHERE $__timeFilter(sealed_at))
GROUP BY time ORDER BY time""",
        ),
        Panel(
            "Requests' duration", "series", unit="ms",
            says="As Envoy tells it, service included: until the last byte of the answer.",
            sql="""SELECT $__timeInterval(sealed_at) AS time,
  quantile(0.5)(duration_us) / 1000 AS p50, quantile(0.95)(duration_us) / 1000 AS p95,
  quantile(0.99)(duration_us) / 1000 AS p99
FROM accesses WHERE $__timeFilter(sealed_at) GROUP BY time ORDER BY time""",
        ),
        Panel(
            "Decisions and their accesses", "bars", least="1m",
            says="By interval, as it was closed: docs/completeness.md. Missing and unexplained are"
            " gaps.",
            sql="SELECT $__timeInterval(sealed_at) AS time, "
            + ",\n  ".join(f"sum(JSONExtractUInt(details, '{name}')) AS {name}" for name in _COUNTS)
            + """
FROM notices WHERE event = 'interval_summary' AND $__timeFilter(sealed_at)
GROUP BY time ORDER BY time""",
        ),
        Panel(
            "Gaps by kind", "bars", least="1m", by="gap",
            sql="""SELECT $__timeInterval(sealed_at) AS time, rule AS gap,
  sum(JSONExtractUInt(details, 'count')) AS gaps
FROM notices WHERE event = 'gap' AND $__timeFilter(sealed_at)
GROUP BY time, gap ORDER BY time, gap""",
        ),
        Panel(
            "Statuses", "bars", by="answer",
            sql="""SELECT $__timeInterval(sealed_at) AS time,
  if(status = 0, 'none', concat(toString(intDiv(status, 100)), 'xx')) AS answer, count() AS accesses
FROM accesses WHERE $__timeFilter(sealed_at) GROUP BY time, answer ORDER BY time, answer""",
        ),
        Panel(
            "Logs", "table",
            sql="""SELECT origin AS log, max(size) AS records, max(written_at) AS checkpoint,
  dateDiff('second', checkpoint, now64(6)) AS age
FROM checkpoints WHERE $__timeFilter(written_at) GROUP BY log ORDER BY age DESC""",
        ),
        Panel(
            "Writers, the most silent first", "table",
            sql="""SELECT writer, origin AS log, count() AS records, max(sealed_at) AS last,
  dateDiff('second', last, now64(6)) AS silent
FROM audit_log WHERE $__timeFilter(sealed_at) AND writer_seq > 0
GROUP BY writer, log ORDER BY silent DESC LIMIT 50""",
        ),
        Panel(
            "Tables", "table", says="Of this server: on a cluster, of its shard.",
            sql="""SELECT table, sum(rows) AS records, sum(bytes_on_disk) AS disk,
  disk / greatest(records, 1) AS "bytes a record", count() AS parts
FROM system.parts WHERE active AND database = currentDatabase()
GROUP BY table ORDER BY disk DESC""",
        ),
        Panel(
            "Started, loaded, lost", "table",
            says="Processes, policies and feeds that came, and writers that are given up.",
            sql="""SELECT notices.time AS at, event, origin AS log, writer, details FROM notices
WHERE event IN ('receiver_started', 'writer_started', 'policy_loaded', 'feed_loaded', 'writer_lost',
  'journal_unavailable') AND $__timeFilter(sealed_at) ORDER BY at DESC LIMIT 200""",
        ),
    ),
)  # fmt: skip
