"""Kill processes at random moments and check that a re-run ends with the same bytes.

    python -m jobs.bench.resume [kills] [driver|explorer|trainer ...]

Each trial runs stages of the micro preset (scripted explorer, random tiny Llama): the whole pipeline, of which the
driver is killed; the search, of which an explorer actor is; or the training, of which a worker is. SIGKILL comes at a
random moment, the job recovers (a driver is started again by the same command), and every finished file is compared
with an undisturbed run's. Repeated work is counted from logs that the processes append to: requests of the search by
tree and round, optimizer steps of the training.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs import results
from raylm.config import load, to_yaml
from raylm.pipeline.config import PipelineConfig

CONFIG = "jobs/configs/micro.yaml"
SLOW_ENGINE = {"latency": 0.3}
CHECKPOINT_EVERY = 2
COMMANDS = {"driver": "", "explorer": "MapWorker", "trainer": "RayTrainWorker"}
"""What the command line of a target's process holds."""
WORKED = {"explorer": "explore", "trainer": "finetune"}
"""The stage in which a target works."""
LIFETIME = {"explorer": 1.5, "trainer": 3.0}
"""Seconds within which a worker is killed once its stage is at work."""
STAGES = ("explore", "synthesize", "finetune")
GIVE_UP = 600.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One kill and what came of it."""

    target: str
    stage: str
    after: float
    """Seconds from the start of the job to the kill."""
    killed: bool
    """False when the job ended before the moment came."""
    identical: bool
    repeated: int
    """Most units that any kill repeated: rounds of one tree, or checkpoint intervals of the training."""


def main(kills: int, targets: list[str]) -> None:
    """Run the trials and write bench/results/resume.json."""
    with tempfile.TemporaryDirectory(prefix="raylm-resume-") as folder:
        root = Path(folder)
        start = time.monotonic()
        if not _finish(_start(root / "reference", "driver", root)):
            raise RuntimeError((root / "reference.log").read_text())
        duration = time.monotonic() - start
        reference = _digests(root / "reference")
        print(f"an undisturbed run took {duration:.0f} s", file=sys.stderr, flush=True)
        trials: list[Trial] = []
        for target in targets:
            for number in range(kills):
                trial = _trial(root, f"{target}{number}", target, duration, reference)
                print(trial, file=sys.stderr, flush=True)
                trials.append(trial)
                path = _write(trials)  # after each, so that an interrupted benchmark has its results so far
    print(path)


def _write(trials: list[Trial]) -> Path:
    """Write what the trials so far show."""
    hits = [trial for trial in trials if trial.killed]
    figures = {
        "kills": len(hits),
        "identical": sum(trial.identical for trial in hits),
        "max_repeated_units": max((trial.repeated for trial in hits), default=0),
        "kills_by_target": dict(collections.Counter(trial.target for trial in hits)),
    }
    return results.write("bench/results/resume", figures, [asdict(trial) for trial in trials])


def _trial(root: Path, name: str, target: str, duration: float, reference: dict[str, str]) -> Trial:
    """One job with one kill at a random moment of the target's life."""
    out = root / name
    job = _start(out, target, root)
    family: list[psutil.Process] = []
    watcher = threading.Thread(target=_follow, args=(job, family), daemon=True)
    watcher.start()
    stage, after, killed = _strike(job, out, target, random.Random(name), duration)
    if killed and target == "driver":
        watcher.join()
        _wait_for_orphans(family)
        job = _start(out, target, root)
    ended = _finish(job)
    expected = {
        file: digest for file, digest in reference.items() if target == "driver" or file.startswith(WORKED[target])
    }
    repeated = max(_repeated_rounds(out), _repeated_checkpoints(out))
    if not ended:
        print(Path(f"{out}.log").read_text(), file=sys.stderr)
    return Trial(target, stage, after, killed, ended and _digests(out) == expected, repeated)


def _follow(job: psutil.Popen, family: list[psutil.Process]) -> None:
    """Remember everything that the job starts, for as long as it lives."""
    while job.poll() is None:
        with contextlib.suppress(psutil.Error):
            family[:] = job.children(recursive=True)
        time.sleep(0.5)


def _start(out: Path, target: str, root: Path) -> psutil.Popen:
    """The job as a process of its own: the pipeline, or the one stage in which the target works."""
    logs = [f"request_log={out}.requests", f"script={json.dumps(SLOW_ENGINE)}"]
    if target == "driver":
        overrides = [f"explorer.{log}" for log in logs] + [f"finetune.step_log={out}.steps", "compare_prompted=false"]
        arguments = ["jobs.pipeline", CONFIG, f"out={out}", *overrides]
    else:
        stage = WORKED[target]
        config = load(PipelineConfig, [CONFIG, f"out={root / 'reference'}"]).stage_configs()[stage]
        file = root / f"{stage}.yaml"
        file.write_text(to_yaml(config))
        overrides = [f"engine.{log}" for log in logs] if target == "explorer" else [f"step_log={out}.steps"]
        arguments = [f"jobs.{stage}", str(file), f"out={out / stage}", *overrides]
    with open(f"{out}.log", "ab") as log:
        return psutil.Popen([sys.executable, "-m", *arguments], stdout=log, stderr=log, start_new_session=True)


def _strike(job: psutil.Popen, out: Path, target: str, rng: random.Random, duration: float) -> tuple[str, float, bool]:
    """Kill the target; returns the stage that was running, the seconds since the start, and whether it was alive."""
    start = time.monotonic()
    if target == "driver":
        victims, delay = [job], rng.uniform(0.05, 0.95) * duration
    else:
        victims, delay = _await_workers(job, out, target), rng.uniform(0.0, LIFETIME[target])
    time.sleep(delay)
    alive = [victim for victim in victims if victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE]
    if not alive:
        return "", round(time.monotonic() - start, 1), False
    begun = [name for name in STAGES if (out / name / "started.json").exists()]
    rng.choice(alive).send_signal(signal.SIGKILL)
    return begun[-1] if begun else "before the first", round(time.monotonic() - start, 1), True


def _await_workers(job: psutil.Popen, out: Path, target: str) -> list[psutil.Process]:
    """The target's processes once its stage has begun its work."""
    begun = Path(f"{out}{ {'explorer': '.requests', 'trainer': '.steps'}[target] }")
    while job.poll() is None:
        if begun.exists():
            named = [(item, _command(item)) for item in job.children(recursive=True)]
            return [item for item, command in named if COMMANDS[target] in command]
        time.sleep(0.05)
    return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _finish(job: psutil.Popen) -> bool:
    """Wait for the job; whether it ended well."""
    return job.wait(GIVE_UP) == 0


def _wait_for_orphans(family: list[psutil.Process]) -> None:
    """Let what a killed driver started end by itself; end it by id where it does not."""
    _, left = psutil.wait_procs(family, timeout=60)
    for process in left:
        process.kill()


def _digests(out: Path) -> dict[str, str]:
    """SHA-256 of every finished data file and model file."""
    files = [file for stage in STAGES for folder in ("data", "model") for file in (out / stage / folder).glob("*")]
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def _repeated_rounds(out: Path) -> int:
    """Most rounds of one tree that were asked for twice."""
    lines = _lines(Path(f"{out}.requests"))
    times = collections.Counter((_question(line["prompt"]), line["request"]) for line in lines)
    trees = collections.Counter()
    for (question, _), count in times.items():
        trees[question] += count - 1
    return max(trees.values(), default=0)


def _lines(path: Path) -> list[dict[str, Any]]:
    """What the processes logged; the last line of a killed one may be torn."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _question(prompt: str) -> str:
    return prompt.rpartition("<|im_start|>user")[2].partition("<|im_end|>")[0]


def _repeated_checkpoints(out: Path) -> int:
    """Checkpoint intervals that the training went through twice, rounded up."""
    steps = [line["step"] for line in _lines(Path(f"{out}.steps"))]
    return -(-(len(steps) - len(set(steps))) // CHECKPOINT_EVERY)


if __name__ == "__main__":
    chosen = sys.argv[2:] or list(COMMANDS)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, chosen)
