# When: the table entry of a role may name `hours`. Only with the file clock.rego of deploy/opa-clock
# does the policy look at the clock; without it, such a role gives nothing.
package envoy.authz

timely_roles contains role if {
	some role in known_roles
	not data.roles[role].hours
}
