# The answer Envoy gets.
#
# Roles pass a row of gates, each in its own file:
#
#   who      identity.rego     a verified person of this tenant (tenants.rego), with roles we know
#   when     hours.rego        of these, roles that count at this hour
#   where    places.rego       of these, roles that count from here
#   what     roles.rego        of these, roles that may do this to this kind of record
#   why      purpose.rego      of these, roles that may do it for this purpose
#   whose    care_team.rego    of these, roles that reach these patients
#
# or, in an emergency, break_glass.rego takes the place of the last two. If a role is left, the
# request is allowed, unless the person is shut out (denied.rego), something was found of them
# (risk.rego), or a module has a refusal: denied.rego, fields.rego, smart.rego. A gate that cannot be
# evaluated lets no role through.
package envoy.authz

# Nothing should leave the rules below without an answer; if something does, it is no.
default allow := {
	"allowed": false,
	"http_status": 403,
	"headers": {"content-type": "application/json"},
	"body": `{"error":"forbidden"}`,
	"audit": {"reason": "the policy came to no decision"},
}

allow := {
	"allowed": true,
	"headers": told,
	"query_parameters_to_set": query,
	"request_headers_to_remove": ["x-break-glass"],
	"audit": object.union(audit, {"reason": grounds}),
} if {
	granted
	not step_up_due
}

# Yes, once they have proved again that it is they: RFC 9470 tells the client how.
allow := {
	"allowed": false,
	"http_status": 401,
	"headers": {"content-type": "application/json", "www-authenticate": step_up_challenge},
	"body": `{"error":"insufficient_user_authentication"}`,
	"audit": object.union(audit, {"reason": step_up_reason}),
} if {
	granted
	step_up_due
}

# The caller learns only that the answer is no; why stands in the audit record.
allow := {
	"allowed": false,
	"http_status": 403,
	"headers": {"content-type": "application/json"},
	"body": `{"error":"forbidden"}`,
	"audit": object.union(audit, {"reason": objection}),
} if {
	not granted
}

default granted := false

granted if {
	grounds
	not shut_out
	not barred
	count(refusals) == 0
}

# For the service. Other modules add to it; deploy/envoy removes what a client brings of x-authz-*.
told["x-authz-subject"] := subject

audit := {
	"subject": subject,
	"tenant": tenant,
	"roles": asserted_roles,
	"purpose": purpose,
	"patients": sort(patients),
	"resource": resource,
	"break_glass": glass_broken,
}

granted_roles := reaching_roles | glass_roles

# Why the answer is yes: undefined unless it is. Of several roles the first in the alphabet speaks.
grounds := "the service's description holds nobody's record" if {
	verified
	describes_service
} else := sprintf("break-glass by %s: %s", [min(glass_roles), glass_reason]) if {
	glass_broken
} else := sprintf("%s on the care team", [role]) if {
	role := min(granted_roles)
	data.roles[role].reach == "care_team"
} else := sprintf("%s on their own record", [role]) if {
	role := min(granted_roles)
	data.roles[role].reach == "own_record"
} else := sprintf("%s may %s %s for %s", [role, action, resource_type, purpose]) if {
	role := min(granted_roles)
}

# Why the answer is no: the first gate that let no role through.
objection := "no verified identity" if {
	subject == ""
} else := "not of this tenant" if {
	not verified
} else := shut_out if {
	shut_out
} else := barred_reason if {
	barred
} else := "no role" if {
	count(known_roles) == 0
} else := concat(" ", [any_of(known_roles), "not at this hour"]) if {
	count(timely_roles) == 0
} else := concat(" ", [any_of(timely_roles), "not from here"]) if {
	count(placed_roles) == 0
} else := "unknown resource" if {
	resource_type == ""
} else := "unknown interaction" if {
	action == ""
} else := "search parameter refused" if {
	count(refused_parameters) > 0
} else := "malformed patient id" if {
	malformed_patient
} else := concat(" ", [any_of(placed_roles), "may not", action, resource_type]) if {
	count(able_roles) == 0
} else := min(refusals) if {
	count(granted_roles) > 0
} else := concat(" ", [any_of(able_roles), "may not break the glass"]) if {
	glass_asked
	not may_break_glass
} else := "no patient named" if {
	glass_asked
} else := "no known purpose of use" if {
	purpose == ""
} else := concat(" ", [any_of(able_roles), "may not act for", purpose]) if {
	count(purposed_roles) == 0
} else := "no patient named" if {
	count(patients) == 0
} else := "not their own record" if {
	every role in purposed_roles {
		data.roles[role].reach == "own_record"
	}
} else := "not on the care team"

any_of(roles) := concat(" or ", sort(roles))
