"""Fills the shipped Envoy bootstrap (deploy/envoy/envoy.yaml) with a deployment's values."""

import re
from collections.abc import Mapping
from string import Template

from authz.errors import UsageError

# Strings stand between double quotes in the template: these would end or escape them.
UNSAFE = re.compile(r'["\\\x00-\x1f\x7f\x85\u2028\u2029]')


def render(template: str, values: Mapping[str, str | int]) -> str:
    """Fill each `${NAME}` of `template`, so that the result is what the template's author meant.

    Raises UsageError when `values` lacks a name of the template or has one that it does not know
    (a misspelt name would leave a default in force unseen), and when a value could break out of
    its place in the YAML.
    """
    text = Template(template)
    if not text.is_valid():
        raise UsageError("The Envoy template has a `$` that begins no name; write `$$` for one.")
    names = set(text.get_identifiers())
    if missing := sorted(names - values.keys()):
        raise UsageError(f"The Envoy template needs values for: {', '.join(missing)}.")
    if unknown := sorted(values.keys() - names):
        raise UsageError(f"The Envoy template has no place for: {', '.join(unknown)}.")
    for name, value in values.items():
        if value == "" or UNSAFE.search(str(value)):
            raise UsageError(
                f"{name} is empty or holds a quote, backslash or control character: {value!r}.",
            )
    return text.substitute(values)
