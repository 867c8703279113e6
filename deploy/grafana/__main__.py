"""Writes the dashboards beside this file: ``python -m deploy.grafana``."""

from deploy.grafana.build import DASHBOARDS, written

if __name__ == "__main__":
    DASHBOARDS.mkdir(exist_ok=True)
    for name, text in written().items():
        (DASHBOARDS / name).write_text(text)
