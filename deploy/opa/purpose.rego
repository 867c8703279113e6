# Why: the purpose of use (HL7 v3-ActReason), from the header for this request or else the token.
package envoy.authz

stated_purpose := headers["x-purpose-of-use"]

stated_purpose := claims.purpose if not headers["x-purpose-of-use"]

default purpose := ""

purpose := "ETREAT" if {
	glass_broken
} else := stated_purpose if {
	data.purposes[stated_purpose]
}

purposed_roles contains role if {
	not glass_asked
	some role in able_roles
	purpose in data.roles[role].purposes
}
