"""Rules of the house: who may import whom, what is documented, how commands end, what the tools say."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import pytest

import revise.__main__
from tests import forks

ROOT = Path(__file__).parents[1]
OURS = {"losses", "system", "data", "engine", "revise", "eval", "examples", "tests"}
MAY_IMPORT = {  # of our own packages
    "losses": {"losses"},
    "system": {"system"},
    "data": {"data", "system"},
    "engine": {"engine", "losses", "data", "system"},
    "revise": {"revise", "engine", "data", "system"},
    "eval": {"eval", "revise", "engine", "data", "system"},
    "examples": {"examples", "eval", "revise", "engine", "losses", "data", "system"},
}
ROOMS = {  # of engine/: what each may import of the others, through their faces
    "model": set(),
    "config": set(),
    "weights": {"model", "config"},
    "distributed": {"model", "config"},
    "planning": {"model", "config"},
    "tracking": set(),
}
ROOMS["optim"] = ROOMS["sampling"] = {*ROOMS}
ROOMS["step"] = {*ROOMS}
ROOMS["run"] = {*ROOMS}
DOORS = {"inputs": {*ROOMS}, "layout": {*ROOMS, "inputs"}}
COMMANDS = ("train", "score", "generate", "plan", "convert", "merge", "publish")
DOORS |= {command: {*ROOMS, "inputs", "layout"} for command in COMMANDS}
ROOMS["bench"] = {*ROOMS, *DOORS}
DOORS["bench_generation"] = {"bench"}
MOST_AT_THE_DOOR = 12
PARTS = {  # of a package that another one may import
    ("eval", "engine"): {"engine", "engine.generate", "engine.score"},
    ("eval", "revise"): {"revise", "revise.client", "revise.judge"},
    ("revise", "engine"): {"engine", "engine.generate"},
}
MAY_ASK = {"revise/client/client.py"}  # by an HTTP library
NAMES_LIBRARIES = {"system/versions.py"}  # and looks up their versions; it may import none of them
MAY_TALK = {  # to other processes
    "engine/distributed/bandwidth.py",
    "engine/distributed/ranks.py",
    "engine/distributed/fsdp.py",
    "engine/run/states.py",
    "system/torch_private.py",
}
MODEL = ("engine/model/transformer.py", "engine/model/head.py", "engine/model/attention.py")
OF_MANY_PROCESSES = re.compile(
    r"(?<![a-z])(distributed|dist|ranks?|shard(?:s|ed|ing)?|fsdp|dtensor|world_size|all_?(?:gather|reduce)|collectives?)(?![a-z])",
    re.IGNORECASE,
)
LOOP_STATEMENTS, LOOP_DEPTH, LOOP_NAMES = 44, 2, 18


def sources(*packages):
    """The packages' files as (path from the root, syntax tree)."""
    paths = sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))
    return [(path.relative_to(ROOT).as_posix(), parsed(path)) for path in paths]


@cache
def parsed(path):
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(tree):
    """All of a tree's."""
    return tuple(ast.walk(tree))


@cache
def attributes(tree):
    """Dotted names of all attributes that a tree reaches for."""
    return frozenset(ast.unparse(node) for node in nodes(tree) if isinstance(node, ast.Attribute))


def imported(tree):
    """Dotted names of all that a tree imports, anywhere in it: `from a import b` gives both a and a.b."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}.{name.name}" for name in node.names)


def touches(tree, dotted):
    """Whether a tree imports a module, part of it, or reaches it as an attribute."""
    if any(f"{name}.".startswith(f"{dotted}.") for name in imported(tree)):
        return True
    return dotted in attributes(tree)


# --- who imports whom ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_below_it(package):
    files = sources(package)
    assert files
    found = {(path, name) for path, tree in files for name in imported(tree) if name.split(".")[0] in OURS}
    assert not [(path, name) for path, name in found if name.split(".")[0] not in MAY_IMPORT[package]]
    assert not [(path, name) for path, tree in files for name in imported(tree) if name.startswith(".")]


@pytest.mark.parametrize(("package", "other"), PARTS)
def test_a_package_takes_no_more_of_another_than_it_needs(package, other):
    found = {name for _, tree in sources(package) for name in imported(tree) if name.split(".")[0] == other}
    assert {".".join(name.split(".")[:2]) for name in found} <= PARTS[package, other]


def rooms_of(path, tree):
    """(room, dotted name) of all that a file imports of the engine's rooms and doors."""
    for node in nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "engine":
            yield from ((name.name, f"engine.{name.name}") for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("engine."):
            yield node.module.split(".")[1], node.module
        elif isinstance(node, ast.Import):
            yield from ((n.name.split(".")[1], n.name) for n in node.names if n.name.startswith("engine."))


def test_no_arrow_of_the_engine_runs_upwards():
    known = ROOMS | DOORS
    names = {p.name.removesuffix(".py") for p in (ROOT / "engine").iterdir() if p.name[0] not in "_."}
    assert set(known) == names - {"py.typed"}
    assert len([p for p in (ROOT / "engine").glob("*.py")]) <= MOST_AT_THE_DOOR
    found = []
    for path, tree in sources("engine"):
        own = path.split("/")[1].removesuffix(".py")
        if own == "__init__":
            assert not list(rooms_of(path, tree))  # the map loads nothing
            continue
        found += [f"{path}: {name}" for room, name in rooms_of(path, tree) if room not in known[own] | {own}]
    assert not found


@pytest.mark.parametrize("package", ["engine", "data", "revise"])
def test_a_room_is_imported_through_its_face(package):
    """Its files are its own; whoever stands outside takes what its __init__ hands on."""
    rooms = {p.name for p in (ROOT / package).iterdir() if (p / "__init__.py").exists()}
    assert rooms
    faces = {}
    for room in rooms:
        tree = ast.parse((ROOT / package / room / "__init__.py").read_text())
        assert len(ast.get_docstring(tree).split("\n\n")) == 1  # one paragraph
        handed = [name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names]
        faces[room] = {name.asname or name.name for name in handed}
    found = []
    for path, tree in sources(*MAY_IMPORT):
        for node in nodes(tree):
            module = getattr(node, "module", None) or ""
            if not isinstance(node, ast.ImportFrom) or not module.startswith(f"{package}."):
                continue
            room, _, rest = module.removeprefix(f"{package}.").partition(".")
            if room not in rooms or path.startswith(f"{package}/{room}/"):
                continue
            unknown = {name for name in names_of(node) if name not in faces[room]}
            found += [f"{path}: {module}"] if rest else [f"{path}: {room} hands on no {name}" for name in unknown]
    assert not found


def names_of(node):
    """What an import takes, by the names that it has there."""
    return {name.name for name in node.names}


def asks_by_http(path, tree):
    """Whether a file imports an HTTP library, by whatever way."""
    names = {name.split(".")[0] for name in imported(tree)}
    if "bench" not in path and path not in NAMES_LIBRARIES:
        names |= {node.value for node in nodes(tree) if isinstance(node, ast.Constant)}
    return bool(names & {"httpx", "httpx2", "requests", "aiohttp"})


def test_one_file_asks_by_http():
    assert {path for path, tree in sources(*MAY_IMPORT) if asks_by_http(path, tree)} == MAY_ASK


def reached(module):
    """All of our modules that importing one loads, or would load for a type checker."""
    found, todo = set(), {module}
    while todo:
        name = todo.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not path.is_file():
            continue
        found.add(name)
        asked = [*imported(parsed(path)), name.rpartition(".")[0]]
        todo |= {other for other in asked if other.split(".")[0] in OURS}
    return found


def test_an_entry_point_does_not_lead_back_to_who_asks_for_it():
    """What a package finds through the installation stands above it, and has to need nothing of it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (group, named), *others = setup["options.entry_points"].items()
    assert group == "engine.generate" and not others
    for line in named.split("\n")[1:]:
        module = line.partition("=")[2].partition(":")[0].strip()
        found = reached(module)
        assert {
            "revise.server_backend",
            "revise.client",
            "data.rows",
        } <= found  # or else this looks for the wrong thing
        assert not [name for name in found if name.split(".")[0] == group.split(".")[0]]


def test_the_client_knows_nothing_of_pairs():
    """revise/client/ asks servers for whoever it is: recipes, scores, evaluators, engine.generate."""
    found = {(path, name) for path, tree in sources("revise/client") for name in imported(tree)}
    assert any(name == "revise.client.wire" for _, name in found)
    of_revise = {(path, name) for path, name in found if name.split(".")[0] == "revise" and name != "revise"}
    assert not [(path, name) for path, name in of_revise if name.split(".")[1] != "client"]


def test_no_test_file_imports_from_another():
    """What two of them need has a file of its own, named after what it holds."""
    found = {(path, name) for path, tree in sources("tests") for name in imported(tree)}
    assert any(name == "tests.tiny" for _, name in found)  # or else this looks for the wrong thing
    of_tests = {(path, name) for path, name in found if name.startswith((".", "tests."))}
    assert not [(path, name) for path, name in of_tests if any(x.startswith("test_") for x in name.split("."))]


def test_losses_need_torch_alone():
    allowed = {*sys.stdlib_module_names, "torch", "losses"}
    assert not [
        (path, name) for path, tree in sources("losses") for name in imported(tree) if name.split(".")[0] not in allowed
    ]


def test_few_files_talk_to_other_processes():
    found = {path for path, tree in sources(*MAY_IMPORT) if touches(tree, "torch.distributed")}
    assert "engine/distributed/ranks.py" in found  # or else this looks for the wrong thing
    assert found <= MAY_TALK


@pytest.mark.parametrize("path", MODEL)
def test_the_model_knows_nothing_of_other_processes(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert not [f"{path}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if OF_MANY_PROCESSES.search(line)]


# --- what is written down ------------------------------------------------------------------------------------------


def public(body, prefix=""):
    """(name, node) of every public function, class and method."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def test_everything_public_has_a_docstring():
    files = sources("losses", "system", "data", "engine", "revise", "eval")
    assert not [path for path, tree in files if not ast.get_docstring(tree)]
    found = [(f"{path}: {name}", node) for path, tree in files for name, node in public(tree.body)]
    assert len(found) > 50
    assert not [location for location, node in found if not ast.get_docstring(node)]


def test_the_loop_reads_on_a_page():
    """An experiment fits in; what nests deeper or carries more names belongs into a function of its own."""
    (loop,) = [
        node for node in ast.parse((ROOT / "engine/train.py").read_text()).body if getattr(node, "name", "") == "train"
    ]
    statements = [node for node in ast.walk(loop) if isinstance(node, ast.stmt)][
        2:
    ]  # but the function and its docstring
    names = {node.id for node in ast.walk(loop) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert 20 < len(statements) <= LOOP_STATEMENTS
    assert deepest(loop) <= LOOP_DEPTH and len(names) <= LOOP_NAMES


def deepest(node):
    """How deep loops and branches nest."""
    own = isinstance(node, (ast.For, ast.While, ast.If, ast.Try))
    return own + max((deepest(child) for child in ast.iter_child_nodes(node)), default=0)


def test_no_file_mentions_a_path_of_one_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 20
    mention = re.compile(rb"(?<![\w.-])/(?:root|work|home)/")
    assert not [name for name in names if mention.search((ROOT / name).read_bytes())]


def test_private_names_of_torch_stand_in_one_file():
    """So that a new torch is tried against one page, and its test says what a torch lacks."""
    private = re.compile(r"(torch|dist|distributed_c10d)(\.\w+)*\._[a-z]\w*", re.IGNORECASE)
    found = {}
    for path, tree in sources(*MAY_IMPORT):
        names = {name for name in imported(tree) if name.split(".")[0] == "torch"}
        names |= attributes(tree)
        found[path] = sorted(name for name in names if private.fullmatch(name))
    assert found.pop("system/torch_private.py")  # or else this looks for the wrong thing
    assert not {path: names for path, names in found.items() if names}


# --- what the tools say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "basedpyright"])
def test_a_tool_finds_nothing(command):
    tool, *flags = command.split()
    found = shutil.which(tool, path=sysconfig.get_path("scripts")) or shutil.which(tool, path=str(ROOT / ".venv/bin"))
    if found is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([found, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


# --- what flags are ---------------------------------------------------------------------------------------------------

NAMES_A_FILE = re.compile(r"\b(files?|folders?|checkouts?|hub id|sqlite)\b", re.IGNORECASE)
NO_PATHS = {"columns", "ignore_columns", "roles", "keep_best", "early_stop", "score"}
"""Flags whose help names files, and whose value is none."""


def text_flags():
    """(file, flag, its type, its help) of every setting that is a text."""
    for path, tree in sources("data", "engine", "revise", "eval", "examples"):
        kinds = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for kind in (node for node in kinds if re.search(r"(Config|Settings)$", node.name)):
            for field, said in zip(kind.body, kind.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr):
                    yield path, ast.unparse(field.target), ast.unparse(field.annotation), ast.literal_eval(said.value)


def test_every_flag_that_is_a_path_is_known_to_be_one():
    """So that ~ and variables in it are expanded."""
    found = [one for one in text_flags() if re.search(r"\b(str|PathText)\b", one[2])]
    assert sum("PathText" in kind for _, _, kind, _ in found) > 80  # or else this looks for the wrong thing
    missing = [f"{path}: {name}" for path, name, kind, said in found if "PathText" not in kind
               and NAMES_A_FILE.search(said) and name not in NO_PATHS]  # fmt: skip
    assert not missing


# --- how commands end ----------------------------------------------------------------------------------------------


def commands():
    """Every module of the library that can be run."""
    return [
        path.removesuffix(".py").replace("/", ".")
        for path, tree in sources("losses", "system", "data", "engine", "revise", "eval")
        if any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree.body)
        and path != "system/session.py"  # launch.sh's
    ]


def test_the_commands_are_these():
    of_the_engine = [
        f"engine.{name}"
        for name in ("bench.__main__", "bench_generation", "convert", "generate", "merge", "plan", "publish", "score")
    ]
    of_the_engine += ["engine.train"]
    of_revise = ["revise.__main__", "revise.bench"]
    assert commands() == ["data.contrast", "data.show", *of_the_engine, "eval.__main__", *of_revise]


NAMED = ["eval advise", "eval mixeval", *(f"revise {name}" for name in revise.__main__.COMMANDS)]


@pytest.mark.parametrize("command", [*(c for c in commands() if not c.endswith("__main__")), "engine.bench", *NAMED])
def test_a_command_explains_itself(command):
    asked, bare = (forks.run([sys.executable, "-m", *command.split(), *flags], cwd=ROOT) for flags in (["--help"], []))
    assert (asked.returncode, asked.stderr) == (0, "")
    assert command in asked.stdout
    assert re.search(r"--(model|shape|tokenizer|html|seconds|prompts|repo)\b", asked.stdout)
    assert (bare.returncode, bare.stdout) == (2, "")
    assert re.fullmatch(r"error: .+\n", bare.stderr)  # one line, hence no traceback
    assert f"such as: python -m {command} " in bare.stderr  # a line to start from
