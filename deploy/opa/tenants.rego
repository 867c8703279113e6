# Whose service it is: one tenant's (`tenant`), or, with the table `tenants`, that tenant's by whose
# host it was asked. A tenant's care teams and people's own records are then under its name.
package envoy.authz

of_this_tenant if {
	not data.tenants
	tenant == data.tenant
}

of_this_tenant if http.host in data.tenants[tenant].hosts

team(patient) := data.care_team[patient] if not data.tenants

team(patient) := data.care_teams[tenant][patient] if data.tenants

# The service must keep to it: it alone knows whose a record is.
told["x-authz-tenant"] := tenant if data.tenants
