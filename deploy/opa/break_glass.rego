# Emergencies: with `x-break-glass: <reason>` a role that may do so reaches a named patient without
# being on the care team. It gives no right the role has not got, and every use is marked.
package envoy.authz

glass_reason := headers["x-break-glass"]

# A reason has a letter or a digit, of whatever script. Anything less asks for nothing: two empty
# headers, which arrive as one comma, do not open a chart. (The embedded engine sees a tab as `\t`:
# what follows a backslash does not count.)
glass_asked if regex.match(`(^|[^\\])[0-9A-Za-z]|[^\s!-~]`, glass_reason)

may_break_glass if {
	some role in able_roles
	data.roles[role].break_glass
}

glass_roles contains role if {
	glass_asked
	count(patients) > 0
	some role in able_roles
	data.roles[role].break_glass
}

default glass_broken := false

glass_broken if count(glass_roles) > 0
