"""Grafana dashboards over the log's database, as code: `python -m deploy.grafana` writes them."""
