# The deny list, case by case: opa test -v deploy/opa
package envoy.authz_test

import data.envoy.authz

list := {"people": ["dr.birch"], "apps": ["old-viewer"], "from_patients": {"p-0001": ["n.cedar"], "p-0100": ["dr.fir"]}}

listed(doc) := decision if {
	decision := authz.allow with input as doc with data.denied as list
}

test_people_on_the_list if {
	listed(reading(staff("dr.birch", ["physician"], "TREAT"), "fhir/Patient/p-0041")).audit.reason == "on the deny list"
	listed(reading(physician, "fhir/Patient/p-0001")).allowed
}

test_no_emergency_for_people_on_the_list if {
	doc := with_header(staff("dr.birch", ["emergency_physician"], "TREAT"), "fhir/Patient/p-0100", "x-break-glass", "help")
	listed(doc).audit.reason == "on the deny list"
}

test_nothing_is_open_to_people_on_the_list if {
	listed(reading(staff("dr.birch", ["physician"], "TREAT"), "fhir/metadata")).audit.reason == "on the deny list"
}

test_apps_on_the_list if {
	every claim in ["azp", "client_id"] {
		doc := reading(object.union(physician, {claim: "old-viewer"}), "fhir/Patient/p-0001")
		listed(doc).audit.reason == "the app is on the deny list"
		listed(reading(object.union(physician, {claim: "new-viewer"}), "fhir/Patient/p-0001")).allowed
	}
}

test_kept_from_one_patient if {
	listed(reading(nurse, "fhir/Patient/p-0001")).audit.reason == "kept from this patient's record"
	listed(searching(nurse, "fhir/Observation", {"patient": ["p-0002,p-0001"]})).audit.reason == "kept from this patient's record"
	listed(reading(nurse, "fhir/Patient/p-0002")).allowed
}

test_an_emergency_reaches_the_record_all_the_same if {
	doc := with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", "unconscious")
	listed(doc).allowed
	listed(doc).audit.break_glass
}

test_a_list_that_is_none_lets_nobody_through if {
	every broken in [
		{}, {"people": "dr.birch", "apps": [], "from_patients": {}}, {"people": [], "apps": []},
		{"people": [], "apps": [], "from_patients": []}, "dr.birch",
		{"people": [], "apps": [], "from_patients": {"p-0001": "n.cedar"}},
	] {
		decision := authz.allow with input as reading(physician, "fhir/Patient/p-0001") with data.denied as broken
		decision.allowed == false
		decision.audit.reason == "the deny list cannot be read"
	}
}
