# Who asks: only what Envoy's jwt_authn has verified. No header says who somebody is.
package envoy.authz

claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].verified_jwt

default subject := ""

subject := claims.sub if is_string(claims.sub)

default tenant := ""

tenant := claims.tenant if is_string(claims.tenant)

asserted_roles := sort({role |
	is_array(claims.roles)
	some role in claims.roles
	is_string(role)
})

# Nobody crosses from one tenant to another, not even in an emergency.
verified if {
	subject != ""
	of_this_tenant
}

known_roles contains role if {
	verified
	some role in asserted_roles
	well_formed(data.roles[role])
}

# A setting that is misspelt would restrict nothing: such a role gives nothing.
well_formed(entry) if {
	count(object.keys(entry) - {"reach", "purposes", "may", "break_glass", "from", "hours", "fields"}) == 0
	count(object.keys(object.get(entry, "fields", {})) - object.keys(entry.may)) == 0
}
