"""What Ray's own metrics endpoint tells of a teacher's job."""

from __future__ import annotations

import re
import time
import urllib.request

import ray

from jobs.cluster.metrics import Meter


def test_a_jobs_numbers_are_on_the_nodes_metrics_page(one_ray: str) -> None:
    meter = Meter("metrics-test")
    meter.span(10, 1000, {"read": 0.5, "forward": 2.0, "write": 0.25}, computed=True)
    meter.span(7, 900, {"read": 0.0, "forward": 0.0, "write": 0.0}, computed=False)
    meter.span(0, 800, {"read": 0.5, "forward": 1.0, "write": 0.25}, computed=True)
    meter.failed("preempted")
    [node] = ray.nodes()
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        ("positions_total", "computed"): 10.0,
        ("positions_total", "found"): 7.0,
        ("spans_total", "computed"): 2.0,
        ("spans_total", "found"): 1.0,
        ("bytes_total", ""): 1800.0,
        ("failed_attempts_total", "preempted"): 1.0,
        ("actors", ""): 3.0,
        ("span_seconds_total", "read"): 1.0,
        ("span_seconds_total", "forward"): 3.0,
    }
    deadline, found = time.monotonic() + 60, dict[tuple[str, str], float]()
    while found != wanted and time.monotonic() < deadline:
        meter.actors(3)  # a gauge is told again and again, as a job does
        time.sleep(0.5)
        with urllib.request.urlopen(page) as answer:
            text = answer.read().decode()
        found |= {key: value for key in wanted if (value := _value(text, *key)) is not None}
    assert found == wanted


def _value(page: str, name: str, tag: str) -> float | None:
    for line in page.splitlines():
        if (
            line.startswith(f"ray_stillhouse_{name}{{")
            and 'cache="metrics-test"' in line
            and f'="{tag}"' in line + '=""'
        ):
            return float(re.split(r"\s+", line.strip())[-1])
    return None
