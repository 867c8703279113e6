# With which app: SMART on FHIR scopes, if data has `smart`. They take away from what the person may
# do, and never add to it.
package envoy.authz

scopes := stated_scopes if {
	is_array(stated_scopes)
} else := split(stated_scopes, " ") if {
	is_string(stated_scopes)
}

stated_scopes := claims[data.smart.scope_claim]

refusals contains concat(" ", ["no scope to", action, resource_type]) if {
	data.smart
	resource_type != ""
	not in_scope
}

in_scope if {
	some scope in scopes
	is_string(scope)
	covers(scope)
}

# Version 1 (patient/Observation.read) and 2 (patient/Observation.rs, ...rs?category=laboratory).
covers(scope) if {
	[_, context, kind, letters, more] := regex.find_all_string_submatch_n(scope_form, scope, 1)[0]
	kind in {"*", resource_type}
	contains(object.get(letters_of, letters, letters), letter_of[action])
	in_context(context)
	narrowed(more)
}

scope_form := `^(patient|user|system)/([A-Za-z]+|\*)\.(read|write|\*|c?r?u?d?s?)(\?.*)?$`

letters_of := {"read": "rs", "write": "cud", "*": "cruds"}

letter_of := {"create": "c", "read": "r", "update": "u", "delete": "d", "search": "s"}

in_context(context) if context in {"user", "system"}

# The patient the app was started for.
in_context("patient") if patients == {launched_for}

launched_for := claims[data.smart.patient_claim]

narrowed("")

# Only a search can be held to it, by a parameter of its own; what a read answers is not known here.
narrowed(more) if {
	action == "search"
	every pair in split(trim_prefix(more, "?"), "&") {
		[name, value] := split(pair, "=")
		input.parsed_query[name] == [value]
	}
}
