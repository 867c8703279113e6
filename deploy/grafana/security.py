"""Who gets in, who is turned away, and what was found."""

from deploy.grafana.board import BEFORE, HOURS, OF_TENANT, TENANT, Board, Panel

# What `authz watch` takes for one: nobody came to be known, and the answer says why.
_FAILED = """subject = '' AND $__timeFilter(sealed_at) AND (status = 401
  OR startsWith(response_details, 'jwt_authn_access_denied')
  OR startsWith(response_details, 'rbac_access_denied'))"""
_PLACES = "arrayConcat(networks, countries)"

BOARD = Board(
    name="security",
    title="authz: security",
    says="Failed authentications, denials, blocks, findings, new places, break-glass.",
    since="now-7d",
    choices=(TENANT,),
    panels=(
        Panel(
            "Failed authentications", "bars", width=16,
            sql=f"""SELECT $__timeInterval(sealed_at) AS time, count() AS failed
FROM accesses WHERE {_FAILED} GROUP BY time ORDER BY time""",
        ),
        Panel(
            "Failed authentications by address", "ranked", width=8,
            sql=f"""SELECT if(source_ip = '', '(unknown)', source_ip) AS address, count() AS failed
FROM accesses WHERE {_FAILED} GROUP BY address ORDER BY failed DESC LIMIT 15""",
        ),
        Panel(
            "Denials by reason code", "bars", width=16, by="reason_code",
            says="What each means: docs/operating.md, docs/identity.md.",
            sql=f"""SELECT $__timeInterval(sealed_at) AS time, reason_code, count() AS denials
FROM decisions WHERE NOT allowed AND $__timeFilter(sealed_at) AND {OF_TENANT}
GROUP BY time, reason_code ORDER BY time, reason_code""",
        ),
        Panel(
            "Denied most", "table", width=8,
            sql=f"""SELECT subject, sumIf(decisions, NOT allowed) AS denied,
  denied / sum(decisions) AS share
FROM activity_hourly WHERE {HOURS} AND {OF_TENANT} AND subject != ''
GROUP BY subject HAVING denied > 0 ORDER BY denied DESC LIMIT 50""",
        ),
        Panel(
            "Findings", "table", width=24, says="With what people said of them last.",
            sql=f"""SELECT findings.time AS at, rule, lane, score_milli / 1000 AS score, subject,
  source_ip, evidence, words.what AS said, concat(origin, '@', toString(index)) AS id
FROM findings GLOBAL LEFT JOIN (
  SELECT records[1] AS id, argMax(substring(event, 9), sealed_at) AS what FROM notices
  WHERE startsWith(event, 'finding_') AND JSONExtractString(details, 'by') != subject
    AND sealed_at >= $__fromTime GROUP BY id
) AS words ON words.id = concat(findings.origin, '@', toString(findings.index))
WHERE event = 'raised' AND $__timeFilter(sealed_at) AND {OF_TENANT} ORDER BY at DESC LIMIT 500""",
        ),
        Panel(
            "New networks and countries", "table",
            says="For somebody who was seen elsewhere in the sixty days before.",
            sql=f"""SELECT subject, place, first FROM (
  SELECT subject, place, min(day) AS first, min(first) OVER (PARTITION BY subject) AS known
  FROM baselines ARRAY JOIN {_PLACES} AS place WHERE {BEFORE} AND {OF_TENANT}
  GROUP BY subject, place)
WHERE first > known AND first >= toDate($__fromTime, 'UTC') ORDER BY first DESC, subject
LIMIT 500""",
        ),
        Panel(
            "Blocks", "table", says="Newest first; a block ends by itself at until.",
            sql="""SELECT notices.time AS at, event, subject,
  JSONExtractString(details, 'by') AS by,
  JSONExtractString(details, 'reason') AS why,
  fromUnixTimestamp64Micro(JSONExtractInt(details, 'until'), 'UTC') AS until
FROM notices WHERE event IN ('block', 'unblock') AND $__timeFilter(sealed_at)
ORDER BY at DESC LIMIT 200""",
        ),
        Panel(
            "Break-glass", "table", width=24, says="Each use, and its review, if there is one.",
            sql=f"""SELECT use.time AS at, use.subject AS subject,
  arrayStringConcat(use.roles, ', ') AS roles, use.reason AS reason, review.verdict AS verdict,
  review.by AS reviewer, concat(use.origin, '@', toString(use.index)) AS id
FROM decisions AS use GLOBAL LEFT JOIN (
  SELECT records[1] AS id, argMax(JSONExtractString(details, 'by'), sealed_at) AS by,
    argMax(JSONExtractString(details, 'verdict'), sealed_at) AS verdict
  FROM notices WHERE event = 'break_glass_reviewed' AND sealed_at >= $__fromTime GROUP BY id
) AS review ON review.id = concat(use.origin, '@', toString(use.index))
WHERE use.break_glass AND use.allowed AND $__timeFilter(use.sealed_at) AND {OF_TENANT}
ORDER BY at DESC LIMIT 500""",
        ),
        Panel(
            "Looks into the log", "table", width=24,
            says="What people asked of it with authz itself, and why. Queries are not among them.",
            sql="""SELECT notices.time AS at, subject,
  JSONExtractString(details, 'command') AS command, purpose, reason, length(patients) AS patients
FROM notices WHERE event = 'look' AND $__timeFilter(sealed_at) ORDER BY at DESC LIMIT 500""",
        ),
    ),
)  # fmt: skip
