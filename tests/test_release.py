"""What stands around the code: one version, bounds that the matrix tries, hooks and templates that name what exists."""

import configparser
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import engine

ROOT = Path(__file__).parents[1]
PACKAGES = ("losses", "system", "data", "engine", "revise", "eval")
OF_THE_FORGE = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]


def setup_cfg():
    """What setup.cfg says."""
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg")
    return read


def lines(text):
    """The lines of a value of setup.cfg."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def torch_bounds():
    """(from, below) of setup.cfg's requirement."""
    (asked,) = [x for x in lines(setup_cfg()["options"]["install_requires"]) if x.startswith("torch ")]
    return re.fullmatch(r"torch >= ([\d.]+), < ([\d.]+)", asked).groups()


def number(version):
    """The first two parts of a version, to compare by."""
    return tuple(int(part) for part in version.split(".")[:2])


def load(name):
    """A YAML file of the repository."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def matrix():
    """What the workflow runs."""
    return load(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]


# --- the version ---------------------------------------------------------------------------------------------------


def test_the_version_stands_once_and_the_citation_agrees():
    assert setup_cfg()["metadata"]["version"] == "attr: engine.__version__"
    assert load("CITATION.cff")["version"] == engine.__version__


def test_the_changelog_tells_of_this_version_newest_first():
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - (unreleased|\d{4}-\d\d-\d\d)", title) for title in titles)
    versions = [tuple(map(int, title.split(" ")[0].split("."))) for title in titles]
    assert versions == sorted(set(versions), reverse=True)
    assert titles[0].split(" ")[0] == engine.__version__


def test_a_release_holds_only_the_changelogs_kinds_of_entries():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for release in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)$", release, re.MULTILINE)
        known = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
        assert kinds and kinds == [kind for kind in known if kind in kinds]


# --- what is installed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_its_types_are_meant(package):
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in lines(setup_cfg()["options.package_data"]["*"])


def test_every_package_that_is_installed_is_among_these():
    found = lines(setup_cfg()["options.packages.find"]["include"])
    assert sorted(name.rstrip("*") for name in found) == sorted(PACKAGES)


def test_the_door_installs_a_torch_within_the_bounds():
    text = (ROOT / "launch.sh").read_text()
    door = dict(re.findall(r"^(MIN_TORCH|END_TORCH|CPU_TORCH)=([\d.]+)", text, re.MULTILINE))
    assert (door["MIN_TORCH"], door["END_TORCH"]) == torch_bounds()
    assert door["CPU_TORCH"] == matrix()["torch"][-1]


# --- what the forge runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OF_THE_FORGE, ids=lambda path: path.name)
def test_a_file_of_the_forge_is_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_workflow_runs_what_every_machine_runs():
    job = load(".github/workflows/test.yml")["jobs"]["test"]
    said = [step["run"] for step in job["steps"] if "run" in step]
    assert said == [".ci/run"]
    mode = subprocess.run(["git", "ls-files", "-s", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111 and mode.stdout[:6] in ("", "100755")
    door = (ROOT / "launch.sh").read_text()
    assert "${TORCH:-}" in door and "${PYTHON3:-}" in door  # what the job sets is what the door hears
    assert {"TORCH", "PYTHON3"} <= set(job["env"])
    assert job["env"]["TORCH"] == "${{ matrix.torch }}"


def test_the_matrix_tries_both_ends_of_python_and_torch():
    pythons, torches = matrix()["python"], matrix()["torch"]
    metadata, options = setup_cfg()["metadata"], setup_cfg()["options"]
    named = [c.removeprefix("Programming Language :: Python :: ") for c in lines(metadata["classifiers"])]
    known = [name for name in named if re.fullmatch(r"3\.\d+", name)]
    assert options["python_requires"] == f">={known[0]}"
    assert pythons == [known[0], known[-1]]
    lowest, end = torch_bounds()
    assert number(torches[0]) == number(lowest)
    assert (number(torches[-1])[0], number(torches[-1])[1] + 1) == number(end)


def test_the_hooks_run_what_the_tests_of_the_house_run():
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [repo["repo"] for repo in load(".pre-commit-config.yaml")["repos"]] == ["local"]
    entries = [hook["entry"] for hook in hooks]
    of_the_house = re.search(r'"command", \[(.+?)\]\)', (ROOT / "tests/test_house.py").read_text())[1]
    tools = [name.strip('"') for name in of_the_house.split(", ")]
    assert len(tools) == 3 and entries[:-1] == [f".venv/bin/{tool}" for tool in tools]
    program, *arguments = shlex.split(entries[-1])
    assert program == ".venv/bin/python"
    assert all((ROOT / argument).exists() for argument in arguments if "/" in argument)
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


def test_whoever_reports_a_fault_is_asked_for_command_settings_and_versions():
    form = load(".github/ISSUE_TEMPLATE/fault.yml")
    parts = {part["id"]: part for part in form["body"]}
    assert {"command", "config", "versions"} <= set(parts)
    assert "config.yaml" in parts["config"]["attributes"]["label"]
    asked = "`python -m engine.plan --versions`"
    assert asked in parts["versions"]["attributes"]["description"]
    assert asked in (ROOT / ".github/pull_request_template.md").read_text()
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        if path.name != "config.yml":
            form = yaml.safe_load(path.read_text())
            assert {"name", "description", "body"} <= set(form)
            ids = [part["id"] for part in form["body"]]
            assert len(ids) == len(set(ids))
            assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])


def test_a_template_names_only_what_exists():
    texts = [p.read_text() for p in (ROOT / ".github").rglob("*") if p.is_file()]
    named = {name for text in texts for name in re.findall(r"`python -m ([\w.]+)", text)}
    assert named == {"engine.plan", "data.show"}
    paths = {
        name for text in texts for name in re.findall(r"(?<![\w/.])(?:docs/[\w-]+\.md|CHANGELOG\.md|\.ci/run)", text)
    }
    assert len(paths) == 3 and all((ROOT / name).exists() for name in paths)
