# What a role may do: the table `roles` in data.json, from role to kind of record to actions.
package envoy.authz

able_roles contains role if {
	count(refused_parameters) == 0
	not malformed_patient
	some role in placed_roles
	action in data.roles[role].may[resource_type]
}
