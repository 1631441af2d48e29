"""Metrics: named once, silent outside of Ray, and the only names that the dashboard asks for."""

import json
import re
from pathlib import Path

import yaml

from raylm import telemetry

ROOT = Path(__file__).parent.parent
MONITORING = ROOT / "cluster" / "monitoring"


def test_outside_of_ray_counting_does_nothing():
    telemetry.count("raylm_nodes", 3)
    telemetry.gauge("raylm_train_loss", 1.0)
    assert not telemetry._made


def test_every_metric_is_counted_somewhere_and_nothing_else_is():
    text = "".join(path.read_text() for path in (ROOT / "raylm").rglob("*.py") if path.name != "telemetry.py")
    used = set(re.findall(r'telemetry\.(?:count|gauge)\(\s*f?"(raylm_[a-z_]+)"', text))
    used |= {f"raylm_{name}" for name in ("prompt_tokens", "cached_tokens", "generated_tokens")}  # in a loop
    used |= {f"raylm_train_{name}" for name in ("step", "loss", "tokens_per_second")}
    assert used == set(telemetry.METRICS)


def panels():
    return json.loads((MONITORING / "grafana.json").read_text())["panels"]


def served():
    """Names of the served models' metrics at Ray's endpoint."""
    text = (ROOT / "raylm" / "serve" / "metrics.py").read_text()
    ends = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
    found = re.findall(r'"(Counter|Gauge|Histogram)", "(raylm_serve_[a-z_]+)"', text)
    assert found
    return {f"ray_{name}{end}" for kind, name in found for end in ends[kind]}


def test_the_dashboard_asks_for_every_metric_of_ours_and_for_none_that_is_not():
    asked = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    ours = set(re.findall(r"\bray_raylm_[a-z_]+", asked))
    counted = {metric.exported for metric in telemetry.METRICS.values()}
    assert counted <= ours <= counted | served()
    others = set(re.findall(r"\bray_[a-z_]+", asked)) - ours
    assert others == {"ray_resources"}  # Ray's own


def test_the_dashboard_is_whole():
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found}) == len(found)
    for panel in found:
        assert panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")


def test_prometheus_reads_the_list_of_nodes_that_ray_keeps():
    settings = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    (job,) = settings["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
