# What an application may ask of the node's OPA: decisions, and which policy makes them. It may
# change nothing, since others' requests are decided by the same policy.
package system.authz

default allow := false

allow if {
	input.method == "POST"
	input.path[0] == "v1"
	input.path[1] == "data"
}

allow if {
	input.method == "GET"
	input.path == ["v1", "policies"]
}
