"""A stand-in for kubectl, for the commands of docs/kubernetes.md, over pods that a test runs:

    kubectl.py STATE apply -k DIR
    kubectl.py STATE -n NAMESPACE exec POD [-c CONTAINER] -- COMMAND
    kubectl.py STATE -n NAMESPACE rollout status KIND/NAME
    kubectl.py STATE -n NAMESPACE port-forward service/NAME OURS:THEIRS

STATE is a JSON file: what runs a command in a container, by pod and container; which port of which
network namespace a Service's is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(state: dict[str, Any], words: list[str]) -> int:
    if words[:2] == ["apply", "-k"]:
        return 0 if Path(words[2]).resolve() == Path(state["overlay"]) else 1
    namespace, verb, *rest = words[1:]
    if words[0] != "-n" or namespace != state["namespace"]:
        return 2
    if verb == "rollout":
        kind, _, name = rest[1].partition("/")
        there = rest[0] == "status" and any(pod.startswith(name) for pod in state["pods"])
        return 0 if there and kind in ("deployment", "statefulset") else 1
    if verb == "exec":
        split = rest.index("--")
        options, command = rest[:split], rest[split + 1 :]
        name = options[0].removeprefix("deployment/")
        pod = state["pods"].get(name) or state["pods"][f"{name}-0"]
        container = options[2] if options[1:2] == ["-c"] else next(iter(pod))
        return subprocess.run([*pod[container], *command], check=False).returncode
    if verb == "port-forward":
        service = state["services"][rest[0].removeprefix("service/")]
        ours, _, theirs = rest[1].partition(":")
        enter, port = service[theirs]
        # Everything that comes to our port is answered from inside of the pod's network.
        line = ["socat", f"TCP-LISTEN:{ours},fork,reuseaddr,bind=127.0.0.1",
                f"EXEC:'{' '.join(enter)} socat - TCP\\:127.0.0.1\\:{port}'"]  # fmt: skip
        os.execvp(line[0], line)  # noqa: S606 - in our place
    return 2


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:]))
