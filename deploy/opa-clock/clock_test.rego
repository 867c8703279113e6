# When roles count, case by case: opa test -v deploy/opa deploy/opa-clock
package envoy.authz_test

import data.envoy.authz

# Billing from Monday to Friday in the day, and through the night of Saturday.
by_hours := object.union(data.roles, {
	"billing": object.union(data.roles.billing, {"hours": ["office", "saturday night"]}),
	"emergency_physician": object.union(data.roles.emergency_physician, {"hours": ["office"]}),
})

hours := {
	"office": [{
		"zone": "America/Chicago",
		"days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"],
		"from": "07:00",
		"until": "19:00",
	}],
	"saturday night": [
		{"zone": "America/Chicago", "days": ["Saturday"], "from": "22:00", "until": "24:00"},
		{"zone": "America/Chicago", "days": ["Sunday"], "from": "00:00", "until": "06:00"},
	],
}

# A bill is read at a time (RFC 3339).
at(when) := object.union(
	reading(billing, "fhir/Claim/clm-00001"),
	{"attributes": {"request": {"time": {"seconds": seconds}}}},
) if {
	seconds := time.parse_rfc3339_ns(when) / 1000000000
}

clocked(doc) := decision if {
	decision := authz.allow with input as doc with data.roles as by_hours with data.hours as hours
}

within(time) if clocked(at(time)).allowed

test_within_hours if {
	within("2026-03-02T07:00:00-06:00")
	within("2026-03-06T18:59:59-06:00")
	within("2026-07-06T07:00:00-05:00")
	within("2026-03-07T22:00:00-06:00")
	within("2026-03-07T23:59:59-06:00")
	within("2026-03-08T00:00:00-06:00")
}

test_outside_hours if {
	every time in [
		"2026-03-02T06:59:59-06:00", "2026-03-06T19:00:00-06:00", "2026-03-07T12:00:00-06:00",
		"2026-07-06T06:59:59-05:00", "2026-03-08T06:00:00-05:00",
	] {
		decision := clocked(at(time))
		decision.allowed == false
		decision.http_status == 403
		decision.audit.reason == "billing not at this hour"
	}
}

test_hours_need_a_time if {
	doc := reading(billing, "fhir/Claim/clm-00001")
	clocked(doc).audit.reason == "billing not at this hour"
}

test_hours_that_are_in_no_table_never_come if {
	doc := at("2026-03-02T12:00:00-06:00")
	decision := authz.allow with input as doc with data.roles as by_hours with data.hours as {}
	decision.audit.reason == "billing not at this hour"
}

test_roles_without_hours_always_count if {
	clocked(reading(physician, "fhir/Patient/p-0001")).audit.reason == "physician on the care team"
}

test_no_emergency_outside_hours if {
	doc := with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", "unconscious on arrival")
	decision := clocked(doc)
	decision.audit.reason == "emergency_physician not at this hour"
}
