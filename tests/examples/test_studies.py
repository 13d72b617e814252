"""The loop of a study: first things first, what is found is kept at once, and one fault does not end it all."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from examples import studies
from examples.studies import Job
from system import InputError, RunError
from system.errors import Stopped
from tests import tiny
from tests.examples.study_of_three import JOBS, Study, do, records, started


def test_runs_are_done_in_their_order_and_once(tmp_path):
    do(tmp_path, Study(tmp_path))
    assert started(tmp_path) == ["1e-06", "1e-05", "0.0001"] and len(records(tmp_path).runs) == 3
    do(tmp_path, Study(tmp_path))
    assert len(started(tmp_path)) == 3 and list((tmp_path / "runs").glob("s-*")) == []


def test_a_run_that_fails_is_left_out_and_named_at_the_end(tmp_path):
    with pytest.raises(RunError, match=r"it cannot go on \(exit code 1\)"):
        do(tmp_path, Study(tmp_path, {1e-5: "fail"}))
    assert [job.lr for job in records(tmp_path).runs] == [1e-6, 1e-4]
    do(tmp_path, Study(tmp_path))
    assert started(tmp_path) == ["1e-06", "1e-05", "0.0001", "1e-05"]


def test_so_is_all_that_is_trained_on_a_set_that_cannot_be_made(tmp_path):
    """Once: however many runs want it, the others are done."""
    asked = []

    def refuse(job):
        if job.set == "bad":
            asked.append(job)
            raise InputError("there are too few pairs")

    bad = [Job("bad", "dpo", lr, 0) for lr in studies.LADDER]
    with pytest.raises(InputError, match="there are too few pairs"):
        do(tmp_path, Study(tmp_path, before=refuse, jobs=[*bad, *JOBS]))
    assert [job.lr for job in records(tmp_path).runs] == [1e-6, 1e-5, 1e-4]
    assert asked == bad[:1] and len(bad) > studies.MOST_FAULTS


def test_a_stop_while_a_run_is_prepared_ends_the_study_and_is_no_fault(tmp_path):
    def stop(job):
        if job.lr == 1e-5:
            raise Stopped("the requests in flight were answered", 130)

    with pytest.raises(Stopped, match="in flight") as end:
        do(tmp_path, Study(tmp_path, before=stop))
    assert end.value.code == 130 and started(tmp_path) == ["1e-06"]


def test_what_a_killed_start_has_found_is_kept_and_not_run_again(tmp_path):
    """The file of a run has its result, and the program was ended before that was on record."""
    study = Study(tmp_path)
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs/s-dpo-1e-06-0.json"
    path.write_text(json.dumps(study.prepare(JOBS[0]) | {"found": {"value": 9}}))
    kept = do(tmp_path, study)
    assert started(tmp_path) == ["1e-05", "0.0001"] and kept.runs[JOBS[0]]["value"] == 9
    path.write_text(json.dumps(study.prepare(JOBS[0]) | {"value": 8, "found": {"value": 9}}))  # was told another thing
    (tmp_path / "records/seed-0.jsonl").unlink()
    do(tmp_path, study)
    assert started(tmp_path)[2:] == ["1e-06", "1e-05", "0.0001"]


def test_what_a_killed_start_has_found_may_be_what_others_waited_for(tmp_path):
    study = Study(tmp_path)
    study.wanted = lambda gained: studies.missing(JOBS[:2] if JOBS[0] in gained else JOBS[:1], gained)
    (tmp_path / "runs").mkdir()
    found = json.dumps(study.prepare(JOBS[0]) | {"found": {"value": 9}})
    (tmp_path / "runs/s-dpo-1e-06-0.json").write_text(found)
    assert set(do(tmp_path, study).runs) == set(JOBS[:2]) and started(tmp_path) == ["1e-05"]


def test_time_that_preparing_takes_counts(tmp_path, monkeypatch):
    clock = time.monotonic

    def prepare(job):
        if job.lr == 1e-5:  # an hour has passed behind it
            monkeypatch.setattr(studies.time, "monotonic", lambda: clock() + 3600)

    with pytest.raises(Stopped, match=f"1 runs are recorded and others are left; {studies.GOES_ON}"):
        do(tmp_path, Study(tmp_path, before=prepare), minutes=10)
    assert started(tmp_path) == ["1e-06"]


@pytest.mark.slow
def test_two_starts_do_not_share_a_folder_and_what_was_killed_is_ended(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nsys.path.insert(0, '.')\n"
        "from tests.examples.study_of_three import Study, do\n"
        "folder = Path(sys.argv[1])\n"
        "do(folder, Study(folder, before=lambda job: time.sleep(30 * (job.lr == 1e-5))))\n"
    )
    one = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=tiny.environment(), cwd=tiny.ROOT)
    deadline = time.monotonic() + 60
    while len(records(tmp_path).runs) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(InputError, match="does a study's runs in it"):
        do(tmp_path, Study(tmp_path))
    os.kill(one.pid, signal.SIGKILL)
    one.wait()
    do(tmp_path, Study(tmp_path))
    assert started(tmp_path) == ["1e-06", "1e-05", "0.0001"]
