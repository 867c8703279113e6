# Where from: the table entry of a role may name places, `from`, and a place has networks or countries.
# Without `from` a role is good everywhere; from a place that is in no table, nowhere.
package envoy.authz

placed_roles contains role if {
	some role in timely_roles
	not data.roles[role].from
}

placed_roles contains role if {
	some role in timely_roles
	some place in data.roles[role].from
	place in places
}

places contains place if {
	some place, entry in data.places
	some network in entry.networks
	in_network(client_address, network)
}

# Envoy's geoip filter sets this header, and deploy/envoy removes what a client brings.
places contains place if {
	some place, entry in data.places
	headers["x-geo-country"] in entry.countries
}

# What Envoy says of the client behind its trusted proxies, if data says that it is to be believed
# (`use_remote_address: true`, as in deploy/envoy); else the peer of the connection.
client_address := headers["x-envoy-external-address"] if {
	data.trust_envoy_address
} else := input.attributes.source.address.socketAddress.address

in_network(address, network) if {
	[base, prefix] := split(network, "/")
	regex.match(`^[0-9]{1,2}$`, prefix)
	shift := 32 - to_number(prefix)
	shift >= 0
	bits.rsh(ipv4(address), shift) == bits.rsh(ipv4(base), shift)
}

in_network(address, network) if {
	[base, prefix] := split(network, "/")
	length := hexadecimal_digits[prefix]
	substring(ipv6(address), 0, length) == substring(ipv6(base), 0, length)
}

# The embedded engine has no net.cidr_contains; places_test.rego holds this against it.
ipv4(address) := number if {
	regex.match(`^([0-9]{1,3}\.){3}[0-9]{1,3}$`, address)
	[first, second, third, fourth] := split(address, ".")
	upper := (to_number(first) * 256) + to_number(second)
	lower := (to_number(third) * 256) + to_number(fourth)
	number := (upper * 65536) + lower
}

# All 32 hexadecimal digits.
ipv6(address) := concat("", groups(address)) if {
	regex.match(`^[0-9a-f]+(:[0-9a-f]+){7}$`, address)
}

ipv6(address) := digits if {
	regex.match(`^[0-9a-f:]*::[0-9a-f:]*$`, address)
	[before, after] := split(address, "::")
	left := groups(before)
	right := groups(after)
	zeros := array.slice(no_groups, 0, (8 - count(left)) - count(right))
	digits := concat("", array.concat(array.concat(left, zeros), right))
}

no_groups := ["0000", "0000", "0000", "0000", "0000", "0000", "0000", "0000"]

groups(address) := padded if {
	text := address
	padded := [substring(concat("", ["0000", group]), count(group), 4) |
		some group in split(text, ":")
		group != ""
	]
}

# Prefix lengths of IPv6 networks that can be written in the table.
hexadecimal_digits := {
	"16": 4, "20": 5, "24": 6, "28": 7, "32": 8, "36": 9, "40": 10, "44": 11, "48": 12,
	"52": 13, "56": 14, "60": 15, "64": 16, "128": 32,
}
