"""A study of three runs, each a process that does what it is told (tests/examples/study_job.py)."""

from examples import studies
from examples.studies import Job, Records

JOBS = [Job("s", "dpo", lr, 0) for lr in (1e-6, 1e-5, 1e-4)]


class Study:
    """Three runs; acts: what each does, by rate."""

    def __init__(self, folder, acts=None, before=lambda job: None, jobs=JOBS):
        self.folder, self.acts, self.before, self.jobs = folder, acts or {}, before, jobs

    def prepare(self, job):
        self.before(job)
        act = self.acts.get(job.lr, "work")
        return {"log": str(self.folder / "log"), "name": f"{job.lr:g}", "act": act, "value": 7, "lr": job.lr}

    def wanted(self, gained):
        return studies.missing(self.jobs, gained)


def records(folder):
    found = Records(folder / "records", lambda job, line, before: float(line.get("value", 0)))
    if not found.bases:
        found.add("base", {"seed": 0})
    return found


def do(folder, study, *, minutes=None, expected=0.0):
    kept = records(folder)
    studies.do_all(study, kept, module="tests.examples.study_job", folder=folder / "runs", at_once=1, minutes=minutes,
                   expected=expected)  # fmt: skip
    return kept


def started(folder):
    return (folder / "log").read_text().split() if (folder / "log").exists() else []
