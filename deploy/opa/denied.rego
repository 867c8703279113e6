# Who is shut out, whatever the other tables allow: the table `denied` has people, apps (the token's
# client), and for a patient those who are to be kept from the record.
package envoy.authz

shut_out := "on the deny list" if {
	subject in data.denied.people
} else := "the app is on the deny list" if {
	client in data.denied.apps
} else := "the deny list cannot be read" if {
	data.denied
	not denied_is_readable
}

client := claims.azp if {
	claims.azp
} else := claims.client_id

# A list that is no list must not let people through.
denied_is_readable if {
	is_array(data.denied.people)
	is_array(data.denied.apps)
	is_object(data.denied.from_patients)
}

# Except to treat an emergency, as 45 CFR 164.522(a)(1)(iii) says of restrictions that patients ask for.
refusals contains "kept from this patient's record" if {
	not glass_broken
	some patient in patients
	subject in data.denied.from_patients[patient]
}

refusals contains "the deny list cannot be read" if {
	some patient in patients
	kept_away := data.denied.from_patients[patient]
	not is_array(kept_away)
}
