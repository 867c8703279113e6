# Several tenants, case by case: opa test -v deploy/opa
package envoy.authz_test

import data.envoy.authz

hosts := {"lakeside": {"hosts": ["lakeside.example"]}, "hillside": {"hosts": ["hillside.example", "hill.example"]}}

# In both tenants a patient has the same id.
teams := {"lakeside": {"p-0001": ["dr.alder"]}, "hillside": {"p-0001": ["dr.oak"]}}

own := {"lakeside": {"portal.maple": "p-0042"}, "hillside": {"portal.maple": "p-0007"}}

at_host(doc, host) := decision if {
	asked := object.union(doc, {"attributes": {"request": {"http": {"host": host}}}})
	decision := authz.allow with input as asked
		with data.tenants as hosts
		with data.care_teams as teams
		with data.own_records as own
}

of(tenant, claims) := object.union(claims, {"tenant": tenant})

oak := of("hillside", staff("dr.oak", ["physician"], "TREAT"))

test_each_at_their_own_host if {
	decision := at_host(reading(oak, "fhir/Patient/p-0001"), "hillside.example")
	decision.allowed
	decision.headers == {"x-authz-subject": "dr.oak", "x-authz-tenant": "hillside"}
	decision.audit.tenant == "hillside"
	at_host(reading(oak, "fhir/Patient/p-0001"), "hill.example").allowed
	at_host(reading(physician, "fhir/Patient/p-0001"), "lakeside.example").allowed
}

test_nobody_at_anothers_host if {
	every host in ["lakeside.example", "elsewhere.example", ""] {
		decision := at_host(reading(oak, "fhir/Patient/p-0001"), host)
		decision.allowed == false
		decision.audit.reason == "not of this tenant"
	}
}

test_a_tenant_in_no_table_has_no_host if {
	stranger := of("dockside", physician)
	at_host(reading(stranger, "fhir/Patient/p-0001"), "lakeside.example").audit.reason == "not of this tenant"
}

test_care_teams_are_each_tenants_own if {
	stranger := of("hillside", physician)
	at_host(reading(stranger, "fhir/Patient/p-0001"), "hillside.example").audit.reason == "not on the care team"
}

test_own_records_are_each_tenants_own if {
	there := of("hillside", patient)
	at_host(reading(there, "fhir/Patient/p-0007"), "hillside.example").allowed
	at_host(reading(there, "fhir/Patient/p-0042"), "hillside.example").audit.reason == "not their own record"
	at_host(reading(patient, "fhir/Patient/p-0042"), "lakeside.example").allowed
}

test_an_emergency_does_not_cross_hosts if {
	stranger := of("hillside", emergency)
	doc := with_header(stranger, "fhir/Patient/p-0100", "x-break-glass", "unconscious")
	at_host(doc, "lakeside.example").audit.reason == "not of this tenant"
}
