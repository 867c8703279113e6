"""What manifests are checked by does find what is wrong with them."""

import pytest
from manifests import kubeconform

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: authz, namespace: fhir}
spec:
  action: CUSTOM
  provider: {name: authz}
  rules: [{}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: authz}
data: {one: two}
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rules:", "rule:", "additional properties 'rule' not allowed"),
        ("CUSTOM", "ASK", "must be one of"),
        ("one: two", "one: 2", "got number"),
        ("kind: ConfigMap", "kind: ConfigMaps", "could not find schema"),
    ],
)
def test_what_is_wrong(tmp_path, old, new, told):
    """A misspelt field, a value that is none, a wrong type, an unknown kind; and nothing else."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    assert kubeconform([path]) == []
    path.write_text(POLICY.replace(old, new))
    [wrong] = kubeconform([path])
    assert told in wrong
