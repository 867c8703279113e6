# SMART on FHIR scopes, case by case: opa test -v deploy/opa
package envoy.authz_test

import data.envoy.authz

smart := {"scope_claim": "scope", "patient_claim": "patient"}

by_app(claims, scope) := object.union(claims, {"scope": scope})

scoped(doc) := decision if {
	decision := authz.allow with input as doc
		with data.smart as smart
		with data.resources.Observation.narrowed_by as ["category", "_count"]
}

unscoped(doc, what) if {
	decision := scoped(doc)
	decision.allowed == false
	decision.audit.reason == concat(" ", ["no scope to", what])
}

observations(scope, query) := searching(by_app(physician, scope), "fhir/Observation", object.union({"patient": ["p-0001"]}, query))

test_scopes_that_cover_a_search if {
	every scope in [
		"user/Observation.read", "user/Observation.rs", "user/Observation.s", "user/Observation.cruds", "user/*.read",
		"user/*.*", "user/Observation.*", "system/Observation.rs", "openid user/Patient.read user/Observation.read",
	] {
		scoped(observations(scope, {})).allowed
	}
	scoped(observations(["openid", "user/Observation.rs"], {})).allowed
}

test_scopes_that_do_not if {
	every scope in [
		"", "openid fhirUser", "user/Patient.read", "user/Observation.r", "user/Observation.write", "user/Observation.",
		"user/Observation", "user/observation.read", "group/Observation.read", "xuser/Observation.read",
		"user/Observation.sr", "user/Observation.reads", "user/Observation.rs#", "launch/patient",
	] {
		unscoped(observations(scope, {}), "search Observation")
	}
	unscoped(observations(7, {}), "search Observation")
	unscoped(observations([7], {}), "search Observation")
	unscoped(searching(physician, "fhir/Observation", {"patient": ["p-0001"]}), "search Observation")
}

test_reading_and_writing_are_apart if {
	scoped(reading(by_app(physician, "user/Patient.r"), "fhir/Patient/p-0001")).allowed
	unscoped(reading(by_app(physician, "user/Patient.s"), "fhir/Patient/p-0001"), "read Patient")
	unscoped(asking(by_app(physician, "user/Patient.read"), "PUT", "fhir/Patient/p-0001", {}), "update Patient")
	scoped(asking(by_app(physician, "user/Patient.u"), "PUT", "fhir/Patient/p-0001", {})).allowed
	scoped(asking(by_app(physician, "user/Patient.write"), "PUT", "fhir/Patient/p-0001", {})).allowed
}

test_scopes_add_nothing if {
	scoped(reading(by_app(nurse, "user/*.*"), "fhir/Patient/p-0100")).audit.reason == "not on the care team"
	scoped(reading(by_app(nurse, "user/*.*"), "fhir/Claim/clm-00001")).audit.reason == "nurse may not read Claim"
}

test_the_patient_the_app_was_started_for if {
	started := object.union(by_app(physician, "launch patient/*.read"), {"patient": "p-0001"})
	scoped(reading(started, "fhir/Patient/p-0001")).allowed
	unscoped(reading(started, "fhir/Patient/p-0002"), "read Patient")
	unscoped(searching(started, "fhir/Observation", {"patient": ["p-0001,p-0002"]}), "search Observation")
	unscoped(reading(by_app(physician, "patient/*.read"), "fhir/Patient/p-0001"), "read Patient")
}

test_their_own_record_is_the_tokens if {
	portal := object.union(by_app(staff("portal.rowan", ["patient"], "PATRQT"), "patient/*.rs"), {"patient": "p-0009"})
	scoped(reading(portal, "fhir/Patient/p-0009")).audit.reason == "patient on their own record"
	scoped(reading(portal, "fhir/Patient/p-0042")).audit.reason == "not their own record"
}

test_a_scope_for_some_records_only if {
	narrow := "user/Observation.rs?category=laboratory"
	scoped(observations(narrow, {"category": ["laboratory"]})).allowed
	unscoped(observations(narrow, {}), "search Observation")
	unscoped(observations(narrow, {"category": ["vital-signs"]}), "search Observation")
	unscoped(observations(narrow, {"category": ["laboratory", "vital-signs"]}), "search Observation")
	unscoped(observations(narrow, {"category": ["laboratory,vital-signs"]}), "search Observation")
	unscoped(observations("user/Observation.rs?", {}), "search Observation")
	unscoped(observations("user/Observation.rs?category=laboratory&status=final", {"category": ["laboratory"]}), "search Observation")
}

test_what_a_read_answers_is_not_known if {
	doc := searching(by_app(lab, "system/Observation.cruds?category=laboratory"), "fhir/Observation/obs-00001", {"category": ["laboratory"]})
	writer := {"lab_feed": object.union(data.roles.lab_feed, {"may": {"Observation": ["read"]}})}
	decision := scoped(doc) with data.roles as writer
	decision.audit.reason == "no scope to read Observation"
}

test_the_description_needs_no_scope if scoped(reading(physician, "fhir/metadata")).allowed

test_an_emergency_needs_a_scope_too if {
	doc := with_header(by_app(emergency, "openid"), "fhir/Patient/p-0100", "x-break-glass", "unconscious")
	unscoped(doc, "read Patient")
}
