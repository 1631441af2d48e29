"""Units of work on real Ray actors: commit, resume, retry, quarantine, restart."""

import asyncio
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pytest

from raylm.errors import EngineDied, UserError
from raylm.llm.config import ComputeConfig
from raylm.storage import Store
from raylm.units import Unit, check_failures, finished_keys, read_unit, run_units, unit_key

pytestmark = pytest.mark.usefixtures("ray_cluster")

COMPUTE = ComputeConfig(cpus=1, in_flight=4, max_attempts=2)


class Squares:
    """A worker whose behaviour the test scripts."""

    def __init__(self, mode="", log=""):
        self.mode, self.log, self.started = mode, log, 0

    async def start(self):
        self.started += 1

    async def close(self):
        pass

    async def run(self, unit, store):
        number = unit.payload["number"]
        with open(self.log, "a") as file:
            file.write(f"{number} {os.getpid()}\n")
        await asyncio.sleep(0.02)
        if self.mode == "broken":
            raise EngineDied("out of memory")
        if number == 3:
            await self._misbehave()
        return pa.table({"square": [number * number]}), {"generation": self.started}

    async def _misbehave(self):
        if self.mode == "user":
            raise UserError("number 3 is malformed")
        if self.mode == "poison":
            raise ArithmeticError("cannot square 3")
        if self.mode == "deadly" or (self.mode == "dead once" and self.started == 1):
            raise EngineDied("out of memory")
        if self.mode == "kills its process":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "kill once":
            with open(self.log) as file:
                pids = {line.split()[1] for line in file}
            if len(pids) == 1:
                os.kill(os.getpid(), signal.SIGKILL)


def _run(tmp_path, mode="", count=8):
    units = [Unit(unit_key("n", number), {"number": number}) for number in range(count)]
    store = Store(str(tmp_path / "stage"))
    args = {"mode": mode, "log": str(tmp_path / "log")}
    report = run_units(units, Squares, args, store, COMPUTE, label="squares", noun="numbers")
    return units, store, report


def _attempts(tmp_path):
    return [int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]


def test_every_unit_is_committed_and_a_second_run_does_nothing(tmp_path):
    units, store, report = _run(tmp_path)
    assert [read_unit(store, unit.key).column("square")[0].as_py() for unit in units] == [n * n for n in range(8)]
    assert set(report.summaries) == {unit.key for unit in units}
    _, _, again = _run(tmp_path)
    assert again.resumed == 8
    assert sorted(_attempts(tmp_path)) == list(range(8))


def test_only_missing_units_run_again(tmp_path):
    units, store, _ = _run(tmp_path)
    store.remove(f"parts/{units[5].key}.parquet")
    _run(tmp_path)
    assert _attempts(tmp_path).count(5) == 2
    assert len(_attempts(tmp_path)) == 9


def test_a_poison_unit_is_set_aside_after_its_tries(tmp_path):
    units, store, report = _run(tmp_path, "poison")
    assert list(report.failed) == [units[3].key]
    assert "cannot square 3" in report.failed[units[3].key]
    assert _attempts(tmp_path).count(3) == COMPUTE.max_attempts
    assert finished_keys(store) == {unit.key for unit in units} - {units[3].key}
    assert store.names("failed") == [f"{units[3].key}.json"]
    with pytest.raises(UserError, match=r"1 of 8 numbers failed.*cannot square 3"):
        check_failures(report, 8, 0.0, store, "numbers")
    check_failures(report, 8, 0.2, store, "numbers")


def test_bad_input_in_a_worker_arrives_as_it_was_raised(tmp_path):
    with pytest.raises(UserError, match=r"^number 3 is malformed$"):
        _run(tmp_path, "user")


def test_a_dead_engine_is_started_again_without_blaming_the_unit(tmp_path):
    units, _, report = _run(tmp_path, "dead once")
    assert not report.failed
    assert report.summaries[units[3].key]["generation"] == 2


def test_an_engine_that_keeps_dying_ends_the_stage_with_its_cause(tmp_path):
    with pytest.raises(EngineDied, match="out of memory"):
        _run(tmp_path, "broken", count=12)


@pytest.mark.parametrize("mode", ["deadly", "kills its process"])
def test_a_unit_that_kills_the_engine_or_its_process_is_found_and_set_aside(tmp_path, mode):
    units, store, report = _run(tmp_path, mode, count=16)
    assert list(report.failed) == [units[3].key]
    assert "alone" in report.failed[units[3].key]
    assert finished_keys(store) == {unit.key for unit in units} - {units[3].key}
    assert _attempts(tmp_path).count(3) == 3
    assert store.names("running") == []


def test_a_killed_actor_loses_only_what_was_in_flight(tmp_path):
    units, store, report = _run(tmp_path, "kill once", count=16)
    assert not report.failed
    assert finished_keys(store) == {unit.key for unit in units}
    attempts = _attempts(tmp_path)
    repeated = len(attempts) - 16
    assert 1 <= repeated <= COMPUTE.in_flight


class Place(Squares):
    """Says what Ray gave its actor."""

    async def run(self, unit, store):
        import ray

        given = ray.get_runtime_context().get_assigned_resources()
        return pa.table({"resource": list(given), "amount": list(given.values())}), {}


def test_actors_get_the_share_and_the_kind_of_node_that_the_config_names(tmp_path):
    asked = ComputeConfig(cpus=0.5, resources={"quiet_corner": 0.25}, accelerator_type="H100")
    store = Store(str(tmp_path))
    run_units([Unit("a", {})], Place, {}, store, asked, label="places", noun="places")
    given = {row["resource"]: row["amount"] for row in read_unit(store, "a").to_pylist()}
    assert given["CPU"] == 0.5
    assert given["quiet_corner"] == 0.25
    assert given["accelerator_type:H100"] > 0


def test_workers_that_this_machine_cannot_run_are_refused():
    code = "from raylm.units import ensure_room; ensure_room(2, 10000, 0, 'workers, cpus_per_worker')"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert "UserError: workers, cpus_per_worker: 2 x 10000 CPUs are asked for" in ended.stderr
