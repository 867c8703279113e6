# How much of a record, case by case: opa test -v deploy/opa
package envoy.authz_test

import data.envoy.authz

by_field := object.union(data.roles, {
	"billing": object.union(data.roles.billing, {"fields": {"Patient": ["name", "id", "address"], "Encounter": []}}),
	"emergency_physician": object.union(data.roles.emergency_physician, {"fields": {"Patient": ["id"]}}),
	"clerk": {"reach": "any_patient", "purposes": ["HPAYMT"], "may": {"Patient": ["read"]}, "fields": {"Patient": ["telecom"]}},
	"cashier": {"reach": "any_patient", "purposes": ["HPAYMT"], "may": {"Patient": ["read"]}},
	"registrar": {
		"reach": "population", "purposes": ["HPAYMT"], "may": {"Patient": ["search", "update"]},
		"fields": {"Patient": ["id", "name"]},
	},
})

fitted(doc) := decision if {
	decision := authz.allow with input as doc with data.roles as by_field
}

registrar := staff("r.rowan", ["registrar"], "HPAYMT")

too_much(doc) if {
	decision := fitted(doc)
	decision.allowed == false
	decision.audit.reason == "asks for fields that are not needed"
}

test_a_request_is_made_to_ask_for_what_is_needed if {
	decision := fitted(reading(billing, "fhir/Patient/p-0001"))
	decision.allowed
	decision.query_parameters_to_set == {"_elements": "address,id,name"}
	decision.headers["x-authz-fields"] == "address,id,name"
}

test_a_search_too if {
	decision := fitted(searching(registrar, "fhir/Patient", {"name": ["A"]}))
	decision.query_parameters_to_set == {"_elements": "id,name"}
}

test_less_may_be_asked_for if {
	decision := fitted(searching(registrar, "fhir/Patient", {"_elements": ["id"]}))
	decision.allowed
	decision.query_parameters_to_set == {}
	decision.headers["x-authz-fields"] == "id,name"
}

test_more_may_not if {
	every asked in [["id,photo"], ["id", "photo"], [""], ["*"], ["id,"]] {
		too_much(searching(registrar, "fhir/Patient", {"_elements": asked}))
		too_much(searching(billing, "fhir/Patient/p-0001", {"_elements": asked}))
	}
}

test_summaries_are_not_known_to_be_less if {
	every summary in [["true"], ["false"], ["data"], ["text"], ["count", "false"], [""]] {
		too_much(searching(registrar, "fhir/Patient", {"_summary": summary}))
		too_much(searching(billing, "fhir/Patient/p-0001", {"_summary": summary}))
	}
}

test_a_count_has_no_fields if {
	decision := fitted(searching(registrar, "fhir/Patient", {"_summary": ["count"]}))
	decision.allowed
	decision.query_parameters_to_set == {}
	too_much(searching(billing, "fhir/Patient/p-0001", {"_summary": ["count"]}))
}

test_an_empty_list_needs_nothing if {
	decision := fitted(searching(billing, "fhir/Encounter", {"patient": ["p-0001"]}))
	decision.allowed == false
	decision.audit.reason == "no field is needed"
}

test_several_roles_add_their_fields if {
	both := staff("b.dogwood", ["billing", "clerk"], "HPAYMT")
	fitted(reading(both, "fhir/Patient/p-0001")).headers["x-authz-fields"] == "address,id,name,telecom"
}

test_a_role_without_a_list_sees_everything if {
	both := staff("b.dogwood", ["billing", "cashier"], "HPAYMT")
	decision := fitted(reading(both, "fhir/Patient/p-0001"))
	decision.allowed
	decision.query_parameters_to_set == {}
	object.keys(decision.headers) == {"x-authz-subject"}
}

test_kinds_without_a_list_are_whole if {
	fitted(reading(billing, "fhir/Claim/clm-00001")).query_parameters_to_set == {}
}

test_what_is_written_is_not_cut if {
	doc := asking(registrar, "PUT", "fhir/Patient/p-0001", {})
	fitted(doc).allowed
	fitted(doc).query_parameters_to_set == {}
}

test_nobody_counts_fields_in_an_emergency if {
	doc := with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", "unconscious")
	fitted(doc).allowed
	fitted(doc).query_parameters_to_set == {}
	fitted(reading(emergency, "fhir/Patient/p-0071")).query_parameters_to_set == {"_elements": "id"}
}

test_without_a_list_elements_are_a_search_parameter_like_others if {
	denied(searching(coordinator, "fhir/Patient", {"_elements": ["id"]}), "search parameter refused")
}

test_a_role_with_a_misspelt_setting_gives_nothing if {
	every wrong in [{"form": ["office"]}, {"fields": {"patient": ["id"]}}] {
		role := object.union(data.roles.billing, wrong)
		decision := authz.allow with input as reading(billing, "fhir/Claim/clm-00001") with data.roles as {"billing": role}
		decision.audit.reason == "no role"
	}
}
