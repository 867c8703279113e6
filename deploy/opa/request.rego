# What is asked for: an action on a kind of record, and the patients the request binds itself to.
package envoy.authz

http := input.attributes.request.http

headers := object.get(http, "headers", {})

describes_service if {
	http.method == "GET"
	input.parsed_path == ["fhir", "metadata"]
}

# /fhir/{type} and /fhir/{type}/{id}; nothing else has a type, and so nothing else is allowed.
default resource_type := ""

resource_type := input.parsed_path[1] if {
	input.parsed_path[0] == "fhir"
	count(input.parsed_path) in {2, 3}
	data.resources[input.parsed_path[1]]
	not malformed_id
}

default resource_id := ""

resource_id := input.parsed_path[2] if resource_type != ""

malformed_id if {
	count(input.parsed_path) == 3
	not is_id(input.parsed_path[2])
}

# The form that FHIR gives ids.
is_id(text) if regex.match(`^[A-Za-z0-9.-]{1,64}$`, text)

resource := resource_type if resource_id == ""

resource := sprintf("%s/%s", [resource_type, resource_id]) if resource_id != ""

default action := ""

action := {"GET": "read", "HEAD": "read", "PUT": "update", "DELETE": "delete"}[http.method] if {
	resource_id != ""
} else := {"GET": "search", "HEAD": "search", "POST": "create"}[http.method] if {
	resource_id == ""
}

# A patient counts as named only where the service must keep to it. GET /fhir/Observation/obs-1
# with ?patient=p-1 names nobody: a read goes by the id alone, whatever the query says.
patients contains resource_id if {
	resource_type == "Patient"
	resource_id != ""
}

patients contains patient if {
	some patient in named_in_query
	is_id(patient)
}

# A new record belongs to the patient its text names.
patients contains patient if {
	action == "create"
	reference := record[data.resources[resource_type].belongs_by].reference
	patient := trim_prefix(reference, "Patient/")
	is_id(patient)
}

# patient=p-1, patient=p-1,p-2 and subject=Patient/p-1; the table has the parameters that count.
named_in_query contains patient if {
	action == "search"
	some parameter in data.resources[resource_type].named_by
	some value in input.parsed_query[parameter]
	some reference in split(value, ",")
	patient := trim_prefix(reference, "Patient/")
}

# _include, _has and their like would draw in records of patients who are not named.
refused_parameters contains parameter if {
	action == "search"
	some parameter, _ in input.parsed_query
	not parameter in data.resources[resource_type].named_by
	not parameter in data.resources[resource_type].narrowed_by
	not parameter in fitting_parameters
}

malformed_patient if {
	some patient in named_in_query
	not is_id(patient)
}

# Texts that Envoy cut short, or that have \u or \/ in them, are not read: policy engines differ
# over such escapes, and a text without a record names nobody.
record := json.unmarshal(http.body) if {
	not input.truncated_body
	not regex.match(`\\[u/]`, http.body)
	json.is_valid(http.body)
}
