"""authz: audited access for services behind Envoy."""
