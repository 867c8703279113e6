# How much of a record: roles whose table entry has `fields` for a kind of record get no others. The
# policy sees requests and no answers, so it has the request ask for these and no more, and the
# service must keep to that: `_elements` as FHIR has it, and the same as a header for other services.
package envoy.authz

# A role without such a list sees everything; of several roles each adds its own. In an emergency
# nobody counts fields.
limited if {
	action in {"read", "search"}
	count(granted_roles) > 0
	not glass_broken
	every role in granted_roles {
		data.roles[role].fields[resource_type]
	}
}

needed_fields contains field if {
	some role in granted_roles
	some field in data.roles[role].fields[resource_type]
}

asked_fields contains field if {
	some text in input.parsed_query._elements
	some field in split(text, ",")
}

# A count has no fields. Only searches have one: a read may take no notice of it.
counted if {
	action == "search"
	input.parsed_query._summary == ["count"]
}

refusals contains "asks for fields that are not needed" if {
	limited
	some field in asked_fields
	not field in needed_fields
}

refusals contains "asks for fields that are not needed" if {
	limited
	input.parsed_query._summary
	not counted
}

refusals contains "no field is needed" if {
	limited
	count(needed_fields) == 0
}

query["_elements"] := concat(",", sort(needed_fields)) if {
	limited
	not counted
	not input.parsed_query._elements
}

told["x-authz-fields"] := concat(",", sort(needed_fields)) if limited

# Who has a list may also ask for less of it, whatever the table says of search parameters.
fitting_parameters contains parameter if {
	some parameter in {"_elements", "_summary"}
	some role in known_roles
	data.roles[role].fields[resource_type]
}
