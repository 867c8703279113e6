# What findings change, case by case: opa test -v deploy/opa
package envoy.authz_test

import data.envoy.authz

raised := 1700000000

found(doc, lane) := object.union(doc, {"authz": {"risk": {
	"lane": lane,
	"rules": ["bulk_read", "off_hours"],
	"score": 6.25,
	"since": raised,
	"until": raised + 86400,
	"findings": ["lakeside/receiver@7", "lakeside/receiver@9"],
}}})

proved(claims, acr, time) := object.union(claims, {"acr": acr, "auth_time": time})

asked_to_step_up(doc) if {
	decision := authz.allow with input as doc
	decision.allowed == false
	decision.http_status == 401
	startswith(decision.headers["www-authenticate"], `Bearer error="insufficient_user_authentication"`)
	contains(decision.headers["www-authenticate"], `acr_values="phrh phr"`)
	decision.audit.reason == "step-up wanted for findings: bulk_read, off_hours"
}

barred(doc) if denied(doc, "barred by findings: bulk_read, off_hours")

test_who_is_known_otherwise_is_still_nobody if {
	doc := asking({}, "GET", "fhir/Patient/p-0001", {"authz": {"subject": "dr.alder", "roles": ["physician"]}})
	denied(doc, "no verified identity")
}

test_findings_to_act_on_bar_everything if {
	barred(found(reading(physician, "fhir/Patient/p-0001"), "act"))
	barred(found(reading(billing, "fhir/Claim/clm-00001"), "act"))
	barred(found(reading(physician, "fhir/metadata"), "act"))
}

test_breaking_the_glass_does_not_help_who_is_barred if {
	doc := with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", "unconscious on arrival")
	barred(found(doc, "act"))
}

test_proof_does_not_help_who_is_barred if {
	barred(found(reading(proved(physician, "phrh", raised + 60), "fhir/Patient/p-0001"), "act"))
}

test_a_lane_nobody_knows_bars if barred(found(reading(physician, "fhir/Patient/p-0001"), "panic"))

test_a_risk_that_says_nothing_bars if {
	doc := object.union(reading(physician, "fhir/Patient/p-0001"), {"authz": {"risk": {"rules": []}}})
	denied(doc, "barred by findings: ")
}

test_findings_to_review_want_proof_near_patients if {
	asked_to_step_up(found(reading(physician, "fhir/Patient/p-0001"), "review"))
	asked_to_step_up(found(searching(physician, "fhir/Observation", {"patient": ["p-0001"]}), "review"))
	asked_to_step_up(found(creating(physician, "fhir/Observation", of_patient("p-0001")), "review"))
}

test_findings_to_review_leave_the_rest_alone if {
	allowed(found(reading(billing, "fhir/Claim/clm-00001"), "review"), "billing may read Claim for HPAYMT")
	allowed(found(reading(billing, "fhir/metadata"), "review"), "the service's description holds nobody's record")
}

test_without_its_table_nothing_is_open if {
	doc := found(reading(billing, "fhir/Claim/clm-00001"), "review")
	decision := authz.allow with input as doc with data.step_up as {}
	decision.allowed == false
}

test_proof_after_the_finding_is_enough if {
	doc := reading(proved(physician, "phr", raised), "fhir/Patient/p-0001")
	allowed(found(doc, "review"), "physician on the care team")
}

test_proof_from_before_the_finding_is_not if {
	asked_to_step_up(found(reading(proved(physician, "phr", raised - 1), "fhir/Patient/p-0001"), "review"))
}

test_a_password_is_no_proof if {
	asked_to_step_up(found(reading(proved(physician, "pwd", raised), "fhir/Patient/p-0001"), "review"))
	asked_to_step_up(found(reading(proved(physician, "phr", "soon"), "fhir/Patient/p-0001"), "review"))
	asked_to_step_up(found(reading(proved(physician, ["phr"], raised), "fhir/Patient/p-0001"), "review"))
}

test_no_proof_is_asked_for_what_is_denied_anyway if {
	denied(found(reading(nurse, "fhir/Patient/p-0100"), "review"), "not on the care team")
}

test_an_emergency_does_not_wait_for_proof if {
	doc := with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", "unconscious on arrival")
	allowed(found(doc, "review"), "break-glass by emergency_physician: unconscious on arrival")
}
