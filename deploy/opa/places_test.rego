# From where roles count, case by case: opa test -v deploy/opa
package envoy.authz_test

import data.envoy.authz

by_place := {"billing": object.union(data.roles.billing, {"from": ["office", "home"]})}

some_places := {
	"office": {"networks": ["10.20.0.0/15", "2001:db8:7::/48"]},
	"home": {"countries": ["US"]},
	"lab": {"networks": ["192.0.2.0/24"]},
}

from_peer(address) := asking(
	billing, "GET", "fhir/Claim/clm-00001",
	{"attributes": {"source": {"address": {"socketAddress": {"address": address, "portValue": 40000}}}}},
)

placed(doc) := decision if {
	decision := authz.allow with input as doc with data.roles as by_place with data.places as some_places
}

from_client(address) := decision if {
	doc := with_header(billing, "fhir/Claim/clm-00001", "x-envoy-external-address", address)
	decision := authz.allow with input as object.union(from_peer("192.0.2.9"), doc)
		with data.roles as by_place
		with data.places as some_places
		with data.trust_envoy_address as true
}

test_from_a_network_of_its_place if {
	placed(from_peer("10.20.0.1")).allowed
	placed(from_peer("10.21.255.254")).allowed
	placed(from_peer("2001:db8:7:1::9")).allowed
}

test_from_elsewhere if {
	every address in ["10.22.0.1", "192.0.2.9", "2001:db8:8::9", "::", "", "/run/envoy.sock"] {
		decision := placed(from_peer(address))
		decision.allowed == false
		decision.audit.reason == "billing not from here"
	}
}

test_from_no_address if placed(reading(billing, "fhir/Claim/clm-00001")).audit.reason == "billing not from here"

test_a_header_is_no_address_unless_envoy_is_to_be_believed if {
	doc := with_header(billing, "fhir/Claim/clm-00001", "x-envoy-external-address", "10.20.0.1")
	placed(object.union(from_peer("192.0.2.9"), doc)).audit.reason == "billing not from here"
}

test_the_client_behind_trusted_proxies if {
	from_client("10.20.0.1").allowed
	from_client("10.22.0.1").audit.reason == "billing not from here"
}

test_from_a_country_of_its_place if {
	placed(with_header(billing, "fhir/Claim/clm-00001", "x-geo-country", "US")).allowed
	not placed(with_header(billing, "fhir/Claim/clm-00001", "x-geo-country", "CA")).allowed
}

test_a_place_that_is_in_no_table_is_nowhere if {
	doc := from_peer("10.20.0.1")
	decision := authz.allow with input as doc with data.roles as by_place with data.places as {}
	decision.audit.reason == "billing not from here"
}

test_the_description_is_open_everywhere if {
	doc := object.union(from_peer("192.0.2.9"), reading(billing, "fhir/metadata"))
	placed(doc).allowed
}

test_no_emergency_from_elsewhere if {
	doc := with_header(emergency, "fhir/Patient/p-0100", "x-break-glass", "unconscious on arrival")
	role := object.union(data.roles.emergency_physician, {"from": ["office"]})
	decision := authz.allow with input as doc
		with data.roles as {"emergency_physician": role}
		with data.places as some_places
	decision.audit.reason == "emergency_physician not from here"
}

# OPA's own builtin is the oracle; the embedded engine has none.
test_networks_are_what_opa_takes_them_for if {
	addresses := [
		"0.0.0.0", "10.0.0.1", "10.128.0.0", "10.255.255.255", "172.16.31.7", "255.255.255.255", "::", "::1",
		"2001:db8::", "2001:db8:0:1::", "2001:db8:7:1:0:0:0:9", "2001:db8:7:1::9", "1:2:3:4:5:6:7:8", "fe80::1:2",
		"ff02::fb",
	]
	networks := [
		"0.0.0.0/0", "10.0.0.0/8", "10.128.0.0/9", "172.16.0.0/12", "172.16.31.0/29", "10.0.0.1/32", "::1/128",
		"2001:db8::/32", "2001:db8:7::/48", "2001:db8:7:1::/64", "fe80::/16", "1:2:3:4:5:6:7:8/128",
	]
	every network in networks {
		every address in addresses {
			ours := {true | authz.in_network(address, network)}
			theirs := {true | net.cidr_contains(network, address)}
			ours == theirs
		}
	}
}

test_what_is_no_network_holds_nobody if {
	every network in ["10.20.0.1", "10.20.0.0/", "10.20.0.0/33", "office", "", "2001:db8::/33", "10.20/16", "::/0"] {
		not authz.in_network("10.20.0.1", network)
		not authz.in_network("2001:db8::1", network)
	}
}
