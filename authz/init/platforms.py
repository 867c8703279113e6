"""The plan for each platform."""

from collections.abc import Callable, Mapping

from authz.init.answers import Answers, Platform
from authz.init.hosts import bare_hosts, local
from authz.init.kubernetes import kubernetes
from authz.init.mesh import envoy_gateway, istio
from authz.init.plan import Plan

_PLANS: Mapping[Platform, Callable[[Answers], Plan]] = {
    Platform.KUBERNETES: kubernetes,
    Platform.ISTIO: istio,
    Platform.ENVOY_GATEWAY: envoy_gateway,
    Platform.BARE_HOSTS: bare_hosts,
    Platform.LOCAL: local,
}


def plan(answers: Answers) -> Plan:
    """Raises `UsageError` for answers that do not go together."""
    made = _PLANS[answers.platform](answers)
    steps = [f"# {answers.platform}: what to do next, in this directory", ""]
    for number, (text, command) in enumerate(made.steps, 1):
        steps.append(
            f"{number}. {text}" + (f"\n\n   ```sh\n   {command}\n   ```\n" if command else "")
        )
    made.add("NEXT.md", "\n".join(steps) + "\n")
    return made
