# Who may see what in the console (authz serve console): roles to what people do there. The input has
# `subject`, `roles`, `tenant`, `action` and, where it is about somebody, `person`; where it is a
# certain report, `report`: disclosures, access, access_internal, activity, breach or review.
package authz.console

default allow := false

allow if {
	some role in input.roles
	input.action in may[role]
	not about_oneself
	not of_patients(role)
}

# Security officers make reports of people and of all, and none that are about a patient.
of_patients("security-officer") if input.report in {"disclosures", "access", "access_internal"}

# Nobody judges, blocks or looks up names about themselves.
about_oneself if {
	input.action in judge
	input.person == input.subject
}

look := {"overview", "search", "record", "person", "patient", "findings", "verify", "policy"}

judge := {"judge", "block"}

# What goes out of the console, as a file.
take := {"report", "export"}

may := {
	"privacy-officer": officer,
	"security-officer": security,
	"auditor": (look | take),
	"operator": operation,
}

officer := ((look | judge) | take) | {"names"}

security := (look | judge) | {"report"}

# Who runs it sees that it runs, and nobody's records.
operation := {"overview", "verify", "policy"}
