# What may be asked of the node's OPA: decisions, and which policy makes them; by kubelet and
# monitoring, how it is. Nobody may change anything, since others are decided by the same policy.
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

allow if {
	input.method == "GET"
	input.path[0] in ["health", "metrics"]
}
