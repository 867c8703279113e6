"""Who looked at one patient, whom the log knows by a token only."""

from deploy.grafana.board import Board, Choice, Panel, chosen

_THEIRS = f"has(patients, {chosen('patient')}) AND $__timeFilter(sealed_at)"
# Records of one patient lie together, by the first; of the few others an index tells the rows.
_SOME = """SELECT origin, index, kind, sealed_at, time, subject, roles, purpose, reason,
  reason_code, break_glass, decision_id, allowed, method, path, status, source_ip FROM audit_log
  WHERE kind IN ('decision', 'access', 'disclosure') AND $__timeFilter(sealed_at)"""
_ABOUT = f"""({_SOME} AND patients[1] = {chosen("patient")}
  UNION ALL {_SOME} AND has(arraySlice(patients, 2), {chosen("patient")})
  AND NOT has([{chosen("patient")}], patients[1]))"""
# That index tells enough by itself: read once more with the rows, it takes longer than they do.
_SETTINGS = "\nSETTINGS use_skip_indexes_on_data_read = 0"
# All records of a request bear its decision's values; one without a decision stands alone.
_REQUEST = "if(decision_id = '', concat(origin, '/', toString(index)), decision_id)"

BOARD = Board(
    name="patient",
    title="authz: a patient",
    says="Who looked at one patient, how often and why.",
    since="now-6y",
    choices=(
        Choice("patient", "Patient (token)", "as records have it: authz lookup makes it of an id"),
    ),
    panels=(
        Panel(
            "Who looked", "table", width=24, says="In the request, or in the answer.",
            sql=f"""SELECT if(subject = '', '(nobody)', subject) AS who,
  arrayStringConcat(arraySort(groupUniqArrayArray(log.roles)), ', ') AS roles,
  uniqExact({_REQUEST}) AS requests,
  uniqExactIf({_REQUEST}, kind != 'disclosure' AND NOT allowed) AS denied,
  uniqExactIf({_REQUEST}, break_glass AND allowed) AS "broken glass",
  arrayStringConcat(arraySort(groupUniqArrayIf(purpose, purpose != '')), ', ') AS purposes,
  min(log.time) AS first, max(log.time) AS last
FROM {_ABOUT} AS log GROUP BY who ORDER BY last DESC LIMIT 500{_SETTINGS}""",
        ),
        Panel(
            "How often", "bars", width=12, least="1d",
            sql=f"""SELECT $__timeInterval(sealed_at) AS time,
  uniqExactIf({_REQUEST}, log.allowed) AS allowed,
  uniqExactIf({_REQUEST}, NOT log.allowed AND kind != 'disclosure') AS denied
FROM {_ABOUT} AS log GROUP BY time ORDER BY time{_SETTINGS}""",
        ),
        Panel(
            "Why", "ranked", width=12,
            sql=f"""SELECT concat(purpose, if(purpose = '', '', ': '),
  if(reason = '', reason_code, reason)) AS why, uniqExact({_REQUEST}) AS requests
FROM {_ABOUT} GROUP BY why ORDER BY requests DESC LIMIT 20{_SETTINGS}""",
        ),
        Panel(
            "Break-glass", "table",
            sql=f"""SELECT log.time AS at, subject, arrayStringConcat(roles, ', ') AS roles,
  reason, path, source_ip
FROM {_ABOUT} AS log WHERE kind = 'decision' AND break_glass AND allowed
ORDER BY at DESC LIMIT 200{_SETTINGS}""",
        ),
        Panel(
            "Looks into the log", "table", says="With authz lookup and the like: about this one.",
            sql=f"""SELECT notices.time AS at, subject, purpose, reason,
  JSONExtractString(details, 'command') AS command
FROM notices WHERE event = 'look' AND {_THEIRS} ORDER BY at DESC LIMIT 200""",
        ),
        Panel(
            "Timeline", "table", width=24, says="The newest 500 requests.",
            sql=f"""SELECT min(log.time) AS at, any(subject) AS subject,
  arrayStringConcat(any(log.roles), ', ') AS roles, any(log.purpose) AS purpose,
  any(log.reason) AS reason, min(log.allowed) AS allowed, any(log.method) AS method,
  any(log.path) AS path, max(log.status) AS status, any(log.source_ip) AS source_ip,
  arrayStringConcat(arraySort(groupUniqArray(if(kind = 'disclosure', 'answer', 'request'))), ', ')
    AS "known by"
FROM {_ABOUT} AS log
GROUP BY {_REQUEST} AS request ORDER BY at DESC LIMIT 500{_SETTINGS}""",
        ),
    ),
)  # fmt: skip
