# The clock, for roles whose table entry names `hours`: beside the files of deploy/opa. The policy then
# differs from minute to minute, so ext-authz keeps none of its decisions for the next request.
package envoy.authz

timely_roles contains role if {
	some role in known_roles
	some name in data.roles[role].hours
	some span in data.hours[name]
	now_within(span)
}

# By Envoy's clock, which no client can set.
now_within(span) if {
	now := [input.attributes.request.time.seconds * 1000000000, span.zone]
	time.weekday(now) in span.days
	[hour, minute, _] := time.clock(now)
	clock := sprintf("%02d:%02d", [hour, minute])
	span.from <= clock
	clock < span.until
}
