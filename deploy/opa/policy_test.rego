# What the policy means, case by case: opa test -v deploy/opa
package envoy.authz_test

import data.envoy.authz

# Somebody with a verified token.
staff(sub, roles, purpose) := {"sub": sub, "roles": roles, "tenant": "lakeside", "purpose": purpose}

physician := staff("dr.alder", ["physician"], "TREAT")

emergency := staff("dr.fir", ["emergency_physician"], "TREAT")

nurse := staff("n.cedar", ["nurse"], "TREAT")

patient := staff("portal.maple", ["patient"], "PATRQT")

billing := staff("b.dogwood", ["billing"], "HPAYMT")

coordinator := staff("c.juniper", ["care_coordinator"], "HOPERAT")

analyst := staff("a.elm", ["analyst"], "HRESCH")

lab := staff("svc.linden", ["lab_feed", "probe"], "TREAT")

asking(claims, method, path, more) := object.union(
	{
		"attributes": {
			"request": {"http": {"method": method, "headers": {}}},
			"metadataContext": {"filterMetadata": {"envoy.filters.http.jwt_authn": {"verified_jwt": claims}}},
		},
		"parsed_path": split(path, "/"),
		"parsed_query": {},
	},
	more,
)

reading(claims, path) := asking(claims, "GET", path, {})

searching(claims, path, query) := asking(claims, "GET", path, {"parsed_query": query})

with_header(claims, path, header, value) := asking(
	claims, "GET", path,
	{"attributes": {"request": {"http": {"headers": {header: value}}}}},
)

creating(claims, path, record) := asking(
	claims, "POST", path,
	{"attributes": {"request": {"http": {"body": json.marshal(record)}}}},
)

of_patient(id) := {"resourceType": "Observation", "subject": {"reference": concat("/", ["Patient", id])}}

allowed(doc, reason) if {
	decision := authz.allow with input as doc
	decision.allowed == true
	decision.audit.reason == reason
}

denied(doc, reason) if {
	decision := authz.allow with input as doc
	decision.allowed == false
	decision.http_status == 403
	decision.body == `{"error":"forbidden"}`
	decision.audit.reason == reason
}

audit(doc) := decision.audit if decision := authz.allow with input as doc

# Who

test_nothing_is_denied if denied({}, "no verified identity")

test_no_token_is_denied if {
	denied({"parsed_path": ["fhir", "Patient", "p-0001"]}, "no verified identity")
}

test_claims_that_authz_verified_count_where_envoy_has_none if {
	doc := {
		"attributes": {"request": {"http": {"method": "GET", "headers": {}}}},
		"authz": {"claims": physician},
		"parsed_path": ["fhir", "Patient", "p-0001"],
		"parsed_query": {},
	}
	allowed(doc, "physician on the care team")
	other := {"authz": {"claims": object.union(physician, {"roles": ["chief"]})}}
	allowed(object.union(reading(physician, "fhir/Patient/p-0001"), other), "physician on the care team")
}

test_headers_are_no_identity if {
	doc := with_header({}, "fhir/Patient/p-0001", "x-authz-subject", "dr.alder")
	denied(doc, "no verified identity")
}

test_subject_must_be_text if {
	denied(reading(object.union(physician, {"sub": 1}), "fhir/Patient/p-0001"), "no verified identity")
}

test_other_tenant_is_denied if {
	denied(reading(object.union(physician, {"tenant": "hillside"}), "fhir/Patient/p-0001"), "not of this tenant")
}

test_missing_tenant_is_denied if {
	denied(reading(object.remove(physician, ["tenant"]), "fhir/Patient/p-0001"), "not of this tenant")
}

test_break_glass_does_not_cross_tenants if {
	stranger := object.union(emergency, {"tenant": "hillside"})
	doc := with_header(stranger, "fhir/Patient/p-0100", "x-break-glass", "unconscious")
	denied(doc, "not of this tenant")
}

test_no_roles_claim_is_denied if {
	denied(reading(object.remove(physician, ["roles"]), "fhir/Patient/p-0001"), "no role")
}

test_unknown_role_is_denied if {
	denied(reading(staff("dr.alder", ["chief"], "TREAT"), "fhir/Patient/p-0001"), "no role")
}

test_audit_names_who_and_what if {
	audit(reading(physician, "fhir/Patient/p-0001")) == {
		"subject": "dr.alder",
		"tenant": "lakeside",
		"roles": ["physician"],
		"purpose": "TREAT",
		"patients": ["p-0001"],
		"resource": "Patient/p-0001",
		"break_glass": false,
		"reason": "physician on the care team",
	}
}

# What

test_billing_may_not_read_clinical_records if {
	doc := searching(billing, "fhir/Observation", {"patient": ["p-0001"]})
	denied(doc, "billing may not search Observation")
}

test_nobody_deletes if {
	denied(asking(physician, "DELETE", "fhir/Patient/p-0001", {}), "physician may not delete Patient")
}

test_reason_names_all_roles_that_fall_short if {
	denied(reading(lab, "fhir/Patient/p-0001"), "lab_feed or probe may not read Patient")
}

test_unknown_resource_is_denied if {
	denied(reading(physician, "fhir/Medication/m-1"), "unknown resource")
	denied(reading(physician, "fhir/Patient/p-0001/Observation"), "unknown resource")
	denied(reading(physician, "fhir/Patient/_history"), "unknown resource")
	denied(reading(physician, "admin"), "unknown resource")
}

test_unknown_interaction_is_denied if {
	denied(asking(physician, "PATCH", "fhir/Patient/p-0001", {}), "unknown interaction")
}

test_include_is_denied if {
	doc := searching(physician, "fhir/Observation", {"patient": ["p-0001"], "_include": ["*"]})
	denied(doc, "search parameter refused")
}

test_parameter_of_another_type_is_denied if {
	denied(searching(physician, "fhir/Patient", {"patient": ["p-0001"]}), "search parameter refused")
}

test_service_description_is_open_to_staff if {
	allowed(reading(physician, "fhir/metadata"), "the service's description holds nobody's record")
	denied(reading({}, "fhir/metadata"), "no verified identity")
}

# Why

test_purpose_from_header_goes_first if {
	doc := with_header(coordinator, "fhir/Patient/p-0001", "x-purpose-of-use", "TREAT")
	allowed(doc, "care_coordinator may read Patient for TREAT")
}

test_header_alone_states_a_purpose if {
	someone := object.remove(nurse, ["purpose"])
	allowed(with_header(someone, "fhir/Patient/p-0001", "x-purpose-of-use", "TREAT"), "nurse on the care team")
}

test_no_purpose_is_denied if {
	denied(reading(object.remove(nurse, ["purpose"]), "fhir/Patient/p-0001"), "no known purpose of use")
}

test_invented_purpose_is_denied if {
	doc := with_header(nurse, "fhir/Patient/p-0001", "x-purpose-of-use", "CURIOSITY")
	denied(doc, "no known purpose of use")
}

test_purpose_of_another_role_is_denied if {
	doc := with_header(nurse, "fhir/Patient/p-0001", "x-purpose-of-use", "HRESCH")
	denied(doc, "nurse may not act for HRESCH")
}

test_emergency_is_no_purpose_without_breaking_the_glass if {
	doc := with_header(emergency, "fhir/Patient/p-0071", "x-purpose-of-use", "ETREAT")
	denied(doc, "emergency_physician may not act for ETREAT")
}

# Whose

test_physician_on_the_care_team if {
	allowed(reading(physician, "fhir/Patient/p-0001"), "physician on the care team")
	allowed(searching(physician, "fhir/Observation", {"patient": ["p-0001,p-0002"]}), "physician on the care team")
	allowed(searching(physician, "fhir/Encounter", {"subject": ["Patient/p-0001"]}), "physician on the care team")
	allowed(asking(physician, "PUT", "fhir/Patient/p-0001", {}), "physician on the care team")
}

test_nurse_not_on_the_care_team if {
	denied(reading(nurse, "fhir/Patient/p-0100"), "not on the care team")
	denied(searching(nurse, "fhir/Observation", {"patient": ["p-0100"]}), "not on the care team")
}

test_one_stranger_among_the_named_is_enough if {
	denied(searching(nurse, "fhir/Observation", {"patient": ["p-0001,p-0100"]}), "not on the care team")
	denied(searching(nurse, "fhir/Observation", {"patient": ["p-0001", "p-0100"]}), "not on the care team")
	query := {"patient": ["p-0001"], "subject": ["Patient/p-0100"]}
	denied(searching(nurse, "fhir/Observation", query), "not on the care team")
}

test_search_must_name_a_patient if {
	denied(searching(physician, "fhir/Observation", {}), "no patient named")
	denied(searching(physician, "fhir/Patient", {"name": ["A"]}), "no patient named")
	denied(searching(physician, "fhir/Observation", {"patient": [""]}), "malformed patient id")
}

test_query_of_a_read_names_nobody if {
	doc := searching(physician, "fhir/Observation/obs-00001", {"patient": ["p-0001"]})
	denied(doc, "no patient named")
}

test_new_record_belongs_to_a_patient_of_the_care_team if {
	allowed(creating(physician, "fhir/Observation", of_patient("p-0001")), "physician on the care team")
	denied(creating(physician, "fhir/Observation", of_patient("p-0100")), "not on the care team")
	denied(creating(physician, "fhir/Observation", {"resourceType": "Observation"}), "no patient named")
}

test_truncated_record_names_nobody if {
	doc := creating(physician, "fhir/Observation", of_patient("p-0001"))
	denied(object.union(doc, {"truncated_body": true}), "no patient named")
}

test_patient_reads_their_own_record_only if {
	allowed(reading(patient, "fhir/Patient/p-0042"), "patient on their own record")
	denied(reading(patient, "fhir/Patient/p-0043"), "not their own record")
	denied(searching(patient, "fhir/Claim", {"patient": ["p-0042,p-0043"]}), "not their own record")
}

test_billing_reaches_any_patient_but_not_all if {
	allowed(searching(billing, "fhir/Claim", {"patient": ["p-0100"]}), "billing may search Claim for HPAYMT")
	allowed(reading(billing, "fhir/Claim/clm-00001"), "billing may read Claim for HPAYMT")
	denied(searching(billing, "fhir/Claim", {}), "no patient named")
}

test_coordinator_searches_without_a_patient if {
	allowed(searching(coordinator, "fhir/Patient", {"name": ["A"]}), "care_coordinator may search Patient for HOPERAT")
}

test_analyst_reads_in_bulk_for_research_only if {
	doc := searching(analyst, "fhir/Observation", {"_count": ["50"]})
	allowed(doc, "analyst may search Observation for HRESCH")
	pretending := object.union(analyst, {"purpose": "TREAT"})
	denied(searching(pretending, "fhir/Observation", {}), "analyst may not act for TREAT")
}

test_lab_feed_only_writes if {
	allowed(creating(lab, "fhir/Observation", of_patient("p-0100")), "lab_feed may create Observation for TREAT")
	denied(searching(lab, "fhir/Observation", {}), "lab_feed or probe may not search Observation")
}

test_probe_reads_faults if allowed(reading(lab, "fhir/_fault/slow"), "probe may read _fault for TREAT")

test_no_role_lends_another_its_rights if {
	both := staff("n.cedar", ["analyst", "nurse"], "TREAT")
	denied(searching(both, "fhir/Observation", {}), "no patient named")
	allowed(searching(both, "fhir/Observation", {"patient": ["p-0001"]}), "nurse on the care team")
}

# Break-glass

test_break_glass_reaches_a_strangers_chart if {
	doc := with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", "unconscious on arrival")
	allowed(doc, "break-glass by emergency_physician: unconscious on arrival")
	entry := audit(doc)
	entry.break_glass == true
	entry.purpose == "ETREAT"
}

test_without_break_glass_the_chart_is_closed if {
	denied(reading(emergency, "fhir/Patient/p-0100"), "not on the care team")
}

test_break_glass_needs_a_reason if {
	denied(with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", " "), "not on the care team")
}

test_break_glass_reason_is_more_than_punctuation if {
	every reason in ["", ",", ", ,", "-", "...", "\t", "?!", "_"] {
		denied(with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", reason), "not on the care team")
	}
	every reason in ["x", "7", "意識不明", "é"] {
		audit(with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", reason)).break_glass
	}
}

test_break_glass_is_for_roles_that_may if {
	doc := with_header(nurse, "fhir/Patient/p-0001", "x-break-glass", "just looking")
	denied(doc, "nurse may not break the glass")
	not audit(doc).break_glass
}

test_break_glass_needs_a_named_patient if {
	denied(with_header(emergency, "fhir/Observation", "x-break-glass", "everybody"), "no patient named")
}

test_break_glass_gives_no_new_rights if {
	doc := with_header(emergency, "fhir/Claim/clm-00001", "x-break-glass", "what does it cost")
	denied(doc, "emergency_physician may not read Claim")
}

# Hours

test_without_a_clock_a_role_with_hours_gives_nothing if {
	role := object.union(data.roles.billing, {"hours": ["office"]})
	decision := authz.allow with input as reading(billing, "fhir/Claim/clm-00001") with data.roles as {"billing": role}
	decision.audit.reason == "billing not at this hour"
}
