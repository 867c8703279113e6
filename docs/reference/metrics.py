"""Every metric, as each process registers it."""

import json
import subprocess
import sys

from docs.reference import markdown

PROCESSES = {
    "authz serve ext-authz": ["authz.serve.ext_authz"],
    "authz serve receiver": ["authz.serve.receiver"],
    "authz serve console": ["authz.serve.console"],
    "authz watch": ["authz.serve.watch", "authz.serve.webhooks"],
}

_TEXT = """What each process serves in Prometheus' format, at `--metrics HOST:PORT`. Beside these
are the client library's own (`process_...`, `python_...`), and of each counter and histogram the
time of its beginning (`..._created`). A metric with labels is there once something was counted.
What to do when one of them is not as it should be: [runbooks](../runbooks.md)."""

# A process's registry is what it has imported, so each is asked in a process of its own.
_ASK = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
found = []
for metric in {*REGISTRY._names_to_collectors.values()}:
    if isinstance(metric, MetricWrapperBase):
        [told] = metric.describe()
        name = told.name + "_total" * (told.type == "counter")
        found.append([name, told.type, list(metric._labelnames), told.documentation])
print(json.dumps(sorted(found)))
"""

Metric = tuple[str, str, list[str], str]


def served(modules: list[str]) -> list[Metric]:
    """Name, type, labels and meaning of each metric that a process of these modules has."""
    command = [sys.executable, "-c", _ASK, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [(name, kind, labels, text) for name, kind, labels, text in json.loads(done.stdout)]


def page() -> str:
    lines = markdown.head("Metrics", _TEXT)
    for process, modules in PROCESSES.items():
        rows = [
            [f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels) or "none", text]
            for name, kind, labels, text in served(modules)
        ]
        lines += [f"## {process}", "", *markdown.table(["Name", "Type", "Labels", "Meaning"], rows)]
    return markdown.page(lines)
