"""The files in deploy/, each read by the program it is meant for."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gruard.daemon.config_errors import Shape
from gruard.daemon.edges.metrics import Metrics
from gruard.daemon.edges.notify import Notifier
from gruard.daemon.settings import Settings, State

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = PROMETHEUS / "gruard.rules.yml"
UNIT = DEPLOY / "gruard.service"
DASHBOARD = DEPLOY / "grafana" / "gruard.json"

#: Units of Grafana's value formats that the dashboard may use.
GRAFANA_UNITS = {"none", "short", "s", "bytes", "percentunit", "cps"}
#: What the dashboard's variables stand for when its queries are checked outside Grafana.
VARIABLES = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*", "$device": ".*"}


def tool(name: str, package: str) -> str:
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin")
    return found or pytest.skip(f"{name} is not installed (Debian: {package})")


def run(*command: str | Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def exported_series() -> set[str]:
    """Every name on the metrics page, suffixes of histograms included, with `up`, which Prometheus adds."""
    metrics = Metrics(version="1")
    metrics.device_score("d", 0.0)
    metrics.model_live("g", "m", "gru", skill=1.0, trained_s=0.0)
    metrics.shed("r")
    metrics.command("train", "done")
    metrics.show_feedback("g", {"expected": 1}, 0.0)
    page = metrics.render().decode()
    return {"up", *re.findall(r"^([a-z_]+)[{ ]", page, flags=re.MULTILINE)}


def series_in(text: str) -> set[str]:
    """Names of this daemon's and the process's series in PromQL, recording rules left out."""
    return set(re.findall(r"(?<![:\w])(?:gruard|process|up)(?:_\w+)?(?=[{\[) ]|$)", text))


# -- Prometheus ----------------------------------------------------------------------------------------


@pytest.mark.prometheus
def test_prometheus_accepts_the_configuration() -> None:
    """The scrape configuration is valid and finds its rules beside it."""
    assert "1 rule files found" in run(
        tool("promtool", "prometheus"), "check", "config", PROMETHEUS / "prometheus.yml"
    )


@pytest.mark.prometheus
def test_rules_pass_every_lint() -> None:
    """The rules are valid, without duplicates or other faults that the linter knows."""
    run(tool("promtool", "prometheus"), "check", "rules", "--lint=all", "--lint-fatal", RULES)


@pytest.mark.prometheus
def test_rules_pass_their_unit_tests() -> None:
    """Each alert fires when it should, with the text it should have, and not before."""
    run(tool("promtool", "prometheus"), "test", "rules", PROMETHEUS / "gruard.rules_test.yml")


@pytest.mark.prometheus
def test_unit_tests_notice_a_changed_rule(tmp_path: Path) -> None:
    """A threshold that is changed in the rules makes their unit tests fail."""
    promtool = tool("promtool", "prometheus")
    shutil.copy(PROMETHEUS / "gruard.rules_test.yml", tmp_path)
    text = RULES.read_text()
    assert "> 0.05" in text
    (tmp_path / RULES.name).write_text(text.replace("> 0.05", "> 0.5"))
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "gruard.rules_test.yml"], capture_output=True, check=False
    )
    assert done.returncode != 0


def alert_names() -> list[str]:
    return re.findall(r"^ +- alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)


def test_each_alert_has_a_unit_test() -> None:
    """No alert is shipped without a case in which it fires and one in which it is quiet."""
    tests = (PROMETHEUS / "gruard.rules_test.yml").read_text()
    for name in alert_names():
        cases = re.findall(rf"alertname: {name}\n(\s+exp_alerts:)?", tests)
        assert any(cases), f"{name} never fires in the tests"
        assert not all(cases), f"{name} is never quiet in the tests"


def test_each_alert_has_severity_text_and_runbook() -> None:
    """Whoever is woken up learns what is wrong and where to read on, in a section that exists."""
    runbook = (DEPLOY / "README.md").read_text()
    blocks = re.split(r"^ +- alert: ", RULES.read_text(), flags=re.MULTILINE)[1:]
    assert len(blocks) == len(set(alert_names())) >= 9
    for block in blocks:
        name = block.split("\n", 1)[0]
        assert re.search(r"severity: (warning|critical)\n", block), name
        assert re.search(r"summary: \S", block), name
        assert re.search(r"description: \S", block), name
        assert f"runbook: deploy/README.md#{name.lower()}\n" in block
        assert f"\n### {name}\n" in runbook


def test_rules_use_only_series_that_exist() -> None:
    """A renamed metric cannot leave a rule behind that never fires again."""
    expressions = re.sub(r"^ *(description|summary|#).*$", "", RULES.read_text(), flags=re.MULTILINE)
    used = {name for name in series_in(expressions) if name not in {"gruard", "process"}}
    assert len(used) > 8
    assert used - exported_series() == set()


# -- Grafana -------------------------------------------------------------------------------------------


@pytest.fixture
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def panels_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries_of(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and PromQL of every query: panels and annotations."""
    for panel in panels_of(dashboard):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def test_dashboard_can_be_provisioned(dashboard: dict[str, Any]) -> None:
    """Stable uid, no number of some other Grafana, not to be edited in place, no import placeholders."""
    assert (dashboard["uid"], dashboard["id"], dashboard["editable"]) == ("gruard", None, False)
    assert "__inputs" not in dashboard
    assert "__requires" not in dashboard


def test_every_query_goes_to_the_chosen_data_source(dashboard: dict[str, Any]) -> None:
    """Nothing names a data source of somebody's machine: all use the variable at the top."""
    variables = dashboard["templating"]["list"]
    assert (variables[0]["name"], variables[0]["type"], variables[0]["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels_of(dashboard):
        assert panel["datasource"] == chosen
        assert [target["datasource"] for target in panel["targets"]] == [chosen] * len(panel["targets"])
    assert [variable["datasource"] for variable in variables[1:]] == [chosen] * 3
    assert [annotation["datasource"] for annotation in dashboard["annotations"]["list"]] == [chosen]


def test_variables_follow_the_time_range(dashboard: dict[str, Any]) -> None:
    """Job, instance and device can be chosen, all at once too, and are read again with the time range."""
    variables = dashboard["templating"]["list"][1:]
    assert [variable["name"] for variable in variables] == ["job", "instance", "device"]
    for variable in variables:
        assert variable["refresh"] == 2
        assert variable["includeAll"]
        assert variable["multi"]


def test_panels_have_ids_titles_descriptions_and_units(dashboard: dict[str, Any]) -> None:
    """Each panel says what it shows and in which unit, and ids are unique."""
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(titles) == len(set(titles))
    for panel in panels_of(dashboard):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in GRAFANA_UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    """No two panels share a cell of the grid and none reaches beyond it."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_queries_use_the_variables(dashboard: dict[str, Any]) -> None:
    """Each series is filtered by job and instance, and each rate uses Grafana's own interval."""
    for title, expression in queries_of(dashboard):
        selectors = expression.count("{")
        assert selectors == expression.count('{job=~"$job", instance=~"$instance"') > 0, title
        assert set(re.findall(r"\[([^\]]+)\]", expression)) <= {"$__rate_interval"}, title


def test_dashboard_shows_only_series_that_exist_and_misses_none(dashboard: dict[str, Any]) -> None:
    """Every series in a query is exported, and every metric of ours has a place on the dashboard."""
    exported = exported_series()
    text = "\n".join(expression for _, expression in queries_of(dashboard))
    used = series_in(text)
    assert used - exported == set()
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if name.startswith("gruard_")}
    assert ours - shown == set()


@pytest.mark.prometheus
def test_queries_parse(dashboard: dict[str, Any], tmp_path: Path) -> None:
    """Prometheus itself parses each query: they are handed to it as recording rules."""
    promtool = tool("promtool", "prometheus")
    lines = ["groups:", "  - name: panels", "    rules:"]
    for number, (_, expression) in enumerate(queries_of(dashboard)):
        for variable, meant in VARIABLES.items():
            expression = expression.replace(variable, meant)  # noqa: PLW2901 -- built up step by step
        assert "$" not in expression
        lines += [f"      - record: panel:query:{number}", f"        expr: {json.dumps(expression)}"]
    rules = tmp_path / "panels.yml"
    rules.write_text("\n".join(lines) + "\n")
    assert f"{len(list(queries_of(dashboard)))} rules found" in run(promtool, "check", "rules", rules)
    rules.write_text("\n".join(lines).replace("sum by (result) (", "sum by (result) ((") + "\n")
    broken = subprocess.run([promtool, "check", "rules", rules], capture_output=True, check=False)
    assert broken.returncode != 0


# -- systemd -------------------------------------------------------------------------------------------


@pytest.mark.systemd
def test_unit_is_valid(tmp_path: Path) -> None:
    """systemd finds nothing wrong with the unit (the program itself is not installed here)."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/gruard/bin/gruard", "/bin/true"))
    done = subprocess.run(
        [tool("systemd-analyze", "systemd"), "verify", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.systemd
def test_unit_is_hardened() -> None:
    """systemd's own exposure score stays where it was measured: 1.2."""
    analyze = tool("systemd-analyze", "systemd")
    help_text = subprocess.run([analyze, "--help"], capture_output=True, text=True, check=False).stdout
    if "--offline" not in help_text:
        pytest.skip("systemd-analyze security needs --offline (systemd 251 or newer)")
    report = run(analyze, "security", "--offline=true", "--threshold=20", UNIT)
    score = re.search(r"exposure level for gruard\.service: ([\d.]+)", report)
    assert score is not None
    assert float(score[1]) <= 1.2


def unit_file() -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign] # keys of units are case-sensitive
    unit.read(UNIT)
    return unit


def test_unit_ends_what_is_stuck_in_time() -> None:
    """A stuck worker is gone after 30 s, a stop is waited for no longer than twice what a clean one takes."""
    service = unit_file()["Service"]
    watchdog_s = float(service["WatchdogSec"])
    fed_every_s = Notifier({"WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"}).watchdog_interval_s
    assert watchdog_s <= 30
    assert fed_every_s is not None
    assert fed_every_s < watchdog_s / 2
    assert 5 < float(service["TimeoutStopSec"]) <= 10
    assert service["KillMode"] == "mixed"


def test_unit_lets_a_damaged_database_be_saved() -> None:
    """A start has time to copy the largest database there can be, on a board that copies 2 MB a second."""
    service = unit_file()["Service"]
    assert service["TimeoutStartSec"].endswith("h")
    hours = int(service["TimeoutStartSec"].removesuffix("h"))
    assert hours * 3600 * 2 > State().max_megabytes


def test_unit_leaves_no_secret_behind() -> None:
    """The password comes from the credential store, files are the daemon's own, and no core is dumped."""
    service = unit_file()["Service"]
    assert service["LoadCredential"] == "mqtt_password"
    assert "Environment" not in service
    assert service["UMask"] == "0077"
    assert service["LimitCORE"] == "0"


def test_unit_keeps_the_promises_of_the_runbook() -> None:
    """It restarts for ever but not on a wrong configuration, has a watchdog, and training may fail alone."""
    unit = unit_file()
    service = dict(unit["Service"])
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "78"
    assert service["WatchdogSec"] == "30"
    assert service["OOMPolicy"] == "continue"
    assert service["StateDirectory"] == service["ConfigurationDirectory"] == "gruard"
    assert "MemoryDenyWriteExecute" not in service
    assert service["ExecStart"] == "/opt/gruard/bin/gruard run -c /etc/gruard/gruard.toml"


#: Pages for people that name tests, settings and series.
PAGES = ("SECURITY.md", "deploy/README.md", "deploy/threat-model.md")


@pytest.mark.parametrize("page", PAGES)
def test_page_names_only_what_exists(page: str) -> None:
    """Each test file, setting, series and alert that a page names is there."""
    text = (DEPLOY.parent / page).read_text("utf-8")
    tests = set(re.findall(r"\b(test_\w+\.py)\b", text))
    assert {name for name in tests if not (DEPLOY.parent / "tests" / name).exists()} == set()
    tables = {name for name, field in Settings.model_fields.items() if name != "sources" and field.default}
    settings = re.findall(rf"`((?:{'|'.join(tables)})\.[a-z_.]+)`", text)
    shape = Shape(Settings.model_json_schema())
    assert {key for key in settings if not shape.node(tuple(key.split(".")))} == set()
    assert set(re.findall(r"\bgruard_[a-z_]+\b", text)) - exported_series() == set()
    assert set(re.findall(r"\bGruard[A-Z]\w+", text)) - set(alert_names()) == set()


def test_pages_name_something() -> None:
    """The check above looks at more than nothing."""
    text = "".join((DEPLOY.parent / page).read_text("utf-8") for page in PAGES)
    assert len(set(re.findall(r"\btest_\w+\.py\b", text))) > 30
    assert len(set(re.findall(r"`(?:alerts|limits|mqtt|state|train)\.\w+`", text))) > 10


def test_runbook_names_every_file_and_no_other() -> None:
    """Each file of the folder is named in the runbook."""
    runbook = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.name != "README.md":
            folder = path.relative_to(DEPLOY).parts[0:2]
            assert path.name in runbook or "/".join(folder) in runbook, path
