package system.authz_test

import data.system.authz

test_a_decision_may_be_asked if {
	authz.allow with input as {"method": "POST", "path": ["v1", "data", "envoy", "authz", "allow"]}
}

test_the_policies_may_be_read if authz.allow with input as {"method": "GET", "path": ["v1", "policies"]}

test_nothing_may_be_changed if {
	every method in {"PUT", "PATCH", "DELETE"} {
		not authz.allow with input as {"method": method, "path": ["v1", "policies", "authz", "batch"]}
		not authz.allow with input as {"method": method, "path": ["v1", "data", "care_team"]}
	}
}

test_nothing_else_may_be_asked if {
	not authz.allow with input as {"method": "POST", "path": ["v1", "query"]}
	not authz.allow with input as {"method": "GET", "path": ["v1", "config"]}
	not authz.allow with input as {"method": "GET", "path": ["v1", "data"]}
}

test_how_it_is_may_be_asked if {
	every path in [["health"], ["metrics"]] {
		authz.allow with input as {"method": "GET", "path": path}
		not authz.allow with input as {"method": "POST", "path": path}
	}
}
