"""Checks what ties the files of deploy/ together and no other tool looks at.

Dashboards: valid JSON, a fixed uid, no data source but the dashboard's own variable, a unit and a
description on every panel, `$__rate_interval` in every rate, expressions Prometheus can parse. Alerts: each runbook link leads to a
heading of docs/operations.md. Both: every metric they ask for is registered in the code, so that a renamed
metric cannot leave an empty panel or a dead alert behind.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Every metric is registered by one of these calls of shared/src/metrics.rs, with a literal name, or is a counter in a
# row of a table that is registered as a whole.
CALL = r"\b(?:counters?|gauges?|seconds(?:_by)?|histograms?)\(\s*"
ROW = r"^ +\((?=\"[a-z_]+_total\")"
REGISTERED = re.compile(rf"(?:{CALL}|{ROW})\"([a-z_]+)\"", re.MULTILINE)
METRICS = {
    name
    for member in ("shared", "gateway", "consumer", "broadcaster")
    for source in (ROOT / member / "src").rglob("*.rs")
    for name in REGISTERED.findall(source.read_text())
}

# What a dashboard may name as its data source; the last two are Grafana's own.
DATA_SOURCES = {"${datasource}", "-- Grafana --", "grafana"}

faults = []


def fault(where, what):
    faults.append(f"{where}: {what}")


def check_metrics(where, expression):
    for name in re.findall(r"\bpulsestream_(\w+)", expression):
        if re.sub(r"_(bucket|sum|count)$", "", name) not in METRICS and name not in METRICS:
            fault(where, f"unknown metric pulsestream_{name}")


def check_data_sources(where, node):
    if isinstance(node, dict):
        source = node.get("datasource")
        uid = source.get("uid") if isinstance(source, dict) else source
        if uid is not None and uid not in DATA_SOURCES:
            fault(where, f"literal data source {uid!r}")
        for value in node.values():
            check_data_sources(where, value)
    elif isinstance(node, list):
        for value in node:
            check_data_sources(where, value)


def panels_of(node):
    for panel in node.get("panels", []):
        if panel["type"] == "row":
            yield from panels_of(panel)
        else:
            yield panel


def check_panel(where, panel):
    if not panel.get("description"):
        fault(where, "no description")
    if not panel.get("fieldConfig", {}).get("defaults", {}).get("unit"):
        fault(where, "no unit")
    for target in panel.get("targets", []):
        check_metrics(where, target["expr"])
        for window in re.findall(r"\[([^\]]+)\]", target["expr"]):
            if window != "$__rate_interval":
                fault(where, f"fixed window [{window}]")


def check_expressions(path, panels):
    """Lets promtool parse every query, dressed up as a recording rule named after its panel."""
    rules = [
        {"record": f"panel_{panel['id']}", "expr": target["expr"].replace("$__rate_interval", "1m"),
         "labels": {"query": target["refId"]}}
        for panel in panels for target in panel.get("targets", [])
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"groups": [{"name": path.stem, "rules": rules}]}, file) # JSON is YAML
        file.flush()
        run = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
    if run.returncode != 0:
        fault(path, run.stderr.strip())


def check_dashboard(path):
    dashboard = json.loads(path.read_text())
    if not dashboard.get("uid"):
        fault(path, "no uid: its address would change with every import")
    check_data_sources(path, dashboard)
    panels = list(panels_of(dashboard))
    check_expressions(path, panels)
    for panel in panels:
        check_panel(f"{path}: {panel['title']}", panel)


def anchors(path):
    """The anchors of a page's headings, as code hosts make them: lower case, blanks to dashes."""
    titles = re.findall(r"^#+ +(.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def check_alerts(path, runbook):
    known = anchors(runbook)
    for group in yaml.safe_load(path.read_text())["groups"]:
        for rule in group["rules"]:
            where = f"{path}: {rule['alert']}"
            check_metrics(where, rule["expr"])
            page, _, anchor = rule["annotations"]["runbook"].partition("#")
            if page != str(runbook) or anchor not in known:
                fault(where, f"runbook leads nowhere: {page}#{anchor}")


for dashboard_path in sorted(pathlib.Path("deploy/grafana/dashboards").glob("*.json")):
    check_dashboard(dashboard_path)
check_alerts(pathlib.Path("deploy/prometheus/alerts.yml"), pathlib.Path("docs/operations.md"))

print("\n".join(faults))
sys.exit(1 if faults else 0)
