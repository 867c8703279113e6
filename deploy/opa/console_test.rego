package authz.console_test

import data.authz.console

asked(role, action) := {"subject": "o.ash", "roles": [role], "tenant": "", "action": action}

test_a_privacy_officer_sees_names if console.allow with input as asked("privacy-officer", "names")

test_an_auditor_sees_records_and_no_names if {
	console.allow with input as asked("auditor", "record")
	not console.allow with input as asked("auditor", "names")
	not console.allow with input as asked("auditor", "judge")
}

test_who_takes_something_along if {
	console.allow with input as asked("privacy-officer", "export")
	console.allow with input as asked("auditor", "export")
	not console.allow with input as asked("security-officer", "export")
	not console.allow with input as asked("operator", "report")
}

test_reports_of_patients_are_not_for_security if {
	breach := object.union(asked("security-officer", "report"), {"report": "breach"})
	console.allow with input as breach
	not console.allow with input as object.union(breach, {"report": "disclosures"})
	both := object.union(breach, {"report": "access", "roles": ["security-officer", "auditor"]})
	console.allow with input as both
}

test_an_operator_sees_nobody if {
	console.allow with input as asked("operator", "overview")
	not console.allow with input as asked("operator", "person")
}

test_others_see_nothing if {
	not console.allow with input as asked("physician", "overview")
	not console.allow with input as {"subject": "x", "action": "overview"}
}

test_nobody_judges_themselves if {
	about := object.union(asked("privacy-officer", "judge"), {"person": "o.ash"})
	not console.allow with input as about
	console.allow with input as object.union(about, {"person": "dr.alder"})
}
