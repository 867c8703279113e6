# Who may see what in the console (authz serve console): roles to what people do there. The input has
# `subject`, `roles`, `tenant`, `action` and, where it is about somebody, `person`.
package authz.console

default allow := false

allow if {
	some role in input.roles
	input.action in may[role]
	not about_oneself
}

# Nobody judges, blocks or looks up names about themselves.
about_oneself if {
	input.action in judge
	input.person == input.subject
}

look := {"overview", "search", "record", "person", "patient", "findings", "verify", "policy"}

judge := {"judge", "block"}

may := {
	"privacy-officer": officer,
	"security-officer": security,
	"auditor": look,
	"operator": operation,
}

officer := (look | judge) | {"names"}

security := look | judge

# Who runs it sees that it runs, and nobody's records.
operation := {"overview", "verify", "policy"}
