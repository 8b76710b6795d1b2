"""The shape of the house: who may import whom, who may wait, and what things are called.

Every rule is a function that reads a house, a folder of sources, and returns its complaints as sentences
that begin with ``file:line``. It is asked twice: of threadserve, which must give it no cause, and of a house
with one planted fault, which shows that the rule can fail. Nothing here imports what it judges, except for
the last test.
"""

from __future__ import annotations

import ast
import asyncio
import graphlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
THREADSERVE = TESTS.parent / "threadserve"
CONTRIBUTING = TESTS.parent / "CONTRIBUTING.md"

# A room may import from the floors below it, and from itself; never from beside or above.
FLOORS = {
    "errors": 1, "events": 1,
    "concurrency": 2,
    "call": 3,
    "handle": 4, "futures": 4,
    "app": 5,
    "replica": 6, "observe": 6,
    "router": 7,
    "runtime": 8,
    "engines": 9, "http": 9,
    "api": 10,
    "tasks": 11,
    "as_ray": 12, "the face": 12,
    "cli": 13, "testing": 13,
    "__main__": 14,
}  # fmt: skip

# Rooms that users import by themselves: their doors say what they offer.
FRONT_ROOMS = {"as_ray"}

# Rooms whose floor is known and that nobody has built yet.
PLANNED = {"events", "observe", "engines"}

# Doors that lead down and are still shut, but for the modules named: what the user declared holds no thread,
# and who runs requests reads options and no graph.
SHUT_DOORS: dict[tuple[str, str], tuple[str, ...]] = {
    ("app", "concurrency"): (),
    ("app", "call"): (),
    ("replica", "app"): ("app.config",),
    ("observe", "app"): ("app.config",),
    ("router", "app"): ("app.config",),
}

THIRD_PARTY = {
    "wrapt": ("app", "replica", "call"),
    "starlette": ("http",),
    "uvicorn": ("http",),
    "yaml": ("app.schema",),
    "click": ("cli",),
    "rich": ("cli",),
    "cloudpickle": ("call.isolation", "as_ray"),
    "prometheus_client": ("observe.metrics",),
    "opentelemetry": ("observe.tracing",),
    "ray": ("engines.ray",),
    "hypothesis": ("testing",),
    "pytest": ("testing",),
}

WAYS_TO_WAIT = (
    "threading",
    "_thread",
    "queue",
    "_queue",
    "signal",
    "select",
    "selectors",
    "sched",
    "time.sleep",
)
SIMULATED_KERNEL = (
    "testing.scheduler", "testing.turns", "testing.primitives", "testing.loops",
    "testing.crew", "testing.watchdog", "testing.stand_ins", "testing.control", "testing.lines",
)  # fmt: skip
WATCHES_TESTS = ("testing.census", "testing.plugin")
MAY_WAIT = ("concurrency", *SIMULATED_KERNEL, *WATCHES_TESTS)
MAY_NAME_FUTURES = ("concurrency.future", "futures", "errors", "testing.loops", "testing.control")
MAY_NAME_ASYNCIO = ("call", "replica", "http")
HARMLESS_IN_ASYNCIO = {"asyncio", "asyncio.get_running_loop"} | {
    f"asyncio.{name}"
    for name, value in vars(asyncio).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}

FACES = ("", "testing")  # what users import from, each name at its first use

LONGEST = 600  # lines a file may have

NAMES_THAT_SAY_NOTHING = {"util", "utils", "common", "helper", "helpers", "manager", "managers", "misc"}


@dataclass(frozen=True)
class Mention:
    """A dotted name that a module imports, or reaches through something it imported."""

    name: str
    line: int
    is_import: bool
    is_for_checkers: bool
    """Under TYPE_CHECKING or in an annotation."""
    binds_face: bool = False


class Module:
    """One source file, as far as the rules care."""

    def __init__(self, root: Path, path: Path) -> None:
        inside = path.relative_to(root).with_suffix("").parts
        self.is_door = inside[-1] == "__init__"
        self.name = ".".join(inside[:-1] if self.is_door else inside)
        self.room = inside[0] if self.name else "the face"
        source = path.read_text(encoding="utf-8")
        self.lines = source.count("\n")
        self.tree = ast.parse(source, str(path))
        self._shown = path.relative_to(root.parent).as_posix()
        self._package = inside[:-1]
        self.mentions = list(self._read())

    def complain(self, line: int, text: str) -> str:
        return f"{self._shown}:{line}: {text}"

    def imports(self) -> Iterator[Mention]:
        return (mention for mention in self.mentions if mention.is_import)

    def _read(self) -> Iterator[Mention]:
        nodes = list(walk(self.tree))
        stands_for: dict[str, str] = {}
        for node, for_checkers in nodes:
            for name, local, meaning, binds_face in self._imported(node):
                stands_for[local] = meaning
                yield Mention(name, getattr(node, "lineno", 1), True, for_checkers, binds_face)
        for node, for_checkers in nodes:
            if isinstance(node, ast.Attribute):
                root, _, rest = ast.unparse(node).partition(".")
                if root in stands_for and rest.replace(".", "").isidentifier():
                    yield Mention(f"{stands_for[root]}.{rest}", node.lineno, False, for_checkers)

    def _imported(self, node: ast.AST) -> Iterator[tuple[str, str, str, bool]]:
        """For each name imported: (dotted name, local name, what that stands for, is that the face)."""
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    local = alias.asname or alias.name.partition(".")[0]
                    meaning = alias.name if alias.asname else local
                    yield alias.name, local, meaning, meaning == "threadserve"
            case ast.ImportFrom(module=origin, names=aliases, level=level):
                above = ("threadserve", *self._package)[: len(self._package) + 2 - level] if level else ()
                origin = ".".join((*above, origin) if origin else above)
                for alias in aliases:
                    name = f"{origin}.{alias.name}"
                    yield name, alias.asname or alias.name, name, False
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(function).endswith(("import_module", "__import__")):
                    yield name, "", "", name == "threadserve"
            case _:
                pass


class House:
    """All modules under a folder."""

    def __init__(self, root: Path) -> None:
        paths = sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)
        self.modules = {module.name: module for module in (Module(root, path) for path in paths)}
        self.face_names = set(self._listed(self.modules[""])) if "" in self.modules else set[str]()

    def home(self, name: str) -> Module | None:
        """The module of this house that a dotted name lies in, or None for somebody else's name."""
        if not in_(name, "threadserve"):
            return None
        inside = name.split(".")[1:]
        while inside and ".".join(inside) not in self.modules:
            inside.pop()
        return self.modules.get(".".join(inside))

    def arrows(self) -> Iterator[tuple[Module, Module, Mention]]:
        """(importer, imported, where) for every import within the house, late ones and checkers' included."""
        for module in self.modules.values():
            for mention in module.imports():
                target = self.home(mention.name)
                if target is not None and target.name and target is not module:
                    yield module, target, mention

    @staticmethod
    def _listed(module: Module) -> Iterator[str]:
        for node in module.tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List(elts=names)):
                    yield from (name.value for name in names if isinstance(name, ast.Constant))  # type: ignore[misc]
                case _:
                    pass


def walk(node: ast.AST, for_checkers: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    yield node, for_checkers
    guards = isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    for field, value in ast.iter_fields(node):
        inner = for_checkers or field in {"annotation", "returns"} or (guards and field == "body")
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from walk(child, inner)


def in_(name: str, *places: str) -> bool:
    """Whether a dotted name is one of `places` or lies inside one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


# The rules.


def every_room_has_a_floor(house: House) -> Iterator[str]:
    for module in house.modules.values():
        if module.room not in FLOORS:
            yield module.complain(1, f"the room {module.room!r} stands on no floor; give it one in FLOORS")


def imports_run_down(house: House) -> Iterator[str]:
    for importer, imported, mention in house.arrows():
        here, there = FLOORS.get(importer.room, 0), FLOORS.get(imported.room, 0)
        if importer.room != imported.room and here <= there:
            way = "sideways" if here == there else "up"
            yield importer.complain(
                mention.line, f"{importer.room} (floor {here}) imports {way}: {mention.name} (floor {there})"
            )


def shut_doors_stay_shut(house: House) -> Iterator[str]:
    for importer, imported, mention in house.arrows():
        allowed = SHUT_DOORS.get((importer.room, imported.room))
        if allowed is not None and not in_(imported.name, *allowed):
            only = f"only {', '.join(allowed)}" if allowed else f"nothing of {imported.room}"
            yield importer.complain(
                mention.line, f"{importer.room} imports {mention.name}, may import {only}"
            )


def nobody_imports_the_face(house: House) -> Iterator[str]:
    for module in house.modules.values():
        for mention in module.imports():
            home = house.home(mention.name)
            if mention.binds_face or (home is not None and not home.name):
                yield module.complain(
                    mention.line, "gets hold of the face `threadserve`; import from the room itself"
                )


def imports_form_no_circle(house: House) -> Iterator[str]:
    lines = {(importer.name, imported.name): mention.line for importer, imported, mention in house.arrows()}
    graph: dict[str, set[str]] = {name: set() for name in house.modules}
    for importer, imported in lines:
        graph[importer].add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle: list[str] = error.args[1][::-1]  # graphlib tells it from the imported to the importer
        first = house.modules[circle[0]]
        yield first.complain(lines[circle[0], circle[1]], f"imports go round: {' -> '.join(circle)}")


def third_party_packages_stay_in_their_rooms(house: House) -> Iterator[str]:
    for module in house.modules.values():
        for mention in module.imports():
            package = mention.name.partition(".")[0]
            if package == "threadserve" or package in sys.stdlib_module_names:
                continue
            rooms = THIRD_PARTY.get(package, ())
            if not in_(module.name, *rooms):
                where = (
                    f"belongs to {', '.join(rooms)}"
                    if rooms
                    else "has no room; THIRD_PARTY lists what has one"
                )
                yield module.complain(mention.line, f"imports {package}, which {where}")


def only_kernels_wait(house: House) -> Iterator[str]:
    for module in house.modules.values():
        if not in_(module.name, *MAY_WAIT):
            for mention in module.mentions:
                if in_(mention.name, *WAYS_TO_WAIT):
                    yield module.complain(
                        mention.line, f"names {mention.name}; only concurrency/ waits, ask the kernel"
                    )


def concurrent_futures_keeps_to_its_homes(house: House) -> Iterator[str]:
    for module in house.modules.values():
        if not in_(module.name, *MAY_NAME_FUTURES):
            for mention in module.mentions:
                if in_(mention.name, "concurrent.interpreters"):
                    continue  # is none of the futures
                if in_(mention.name, "concurrent") and not mention.is_for_checkers:
                    homes = ", ".join(MAY_NAME_FUTURES)
                    yield module.complain(mention.line, f"names {mention.name}, which belongs to {homes}")


def asyncio_is_named_for_its_exceptions_only(house: House) -> Iterator[str]:
    for module in house.modules.values():
        if in_(module.name, *MAY_WAIT):
            continue
        may_name = in_(module.name, *MAY_NAME_ASYNCIO)
        for mention in module.mentions:
            if not in_(mention.name, "asyncio") or mention.is_for_checkers:
                continue
            if not may_name:
                yield module.complain(mention.line, f"names {mention.name}; asyncio belongs to concurrency/")
            elif mention.name not in HARMLESS_IN_ASYNCIO:
                yield module.complain(
                    mention.line,
                    f"names {mention.name}; here only exceptions of asyncio and get_running_loop",
                )


def file_names_say_something(house: House) -> Iterator[str]:
    for module in house.modules.values():
        last = module.name.rpartition(".")[2]
        if NAMES_THAT_SAY_NOTHING & set(last.split("_")):
            yield module.complain(1, f"the name {last!r} says nothing; name what is inside")
        if last.startswith("_") and last != "__main__":
            yield module.complain(1, f"the name {last!r} hides; what is private is what __all__ leaves out")


def files_are_read_in_one_go(house: House) -> Iterator[str]:
    for module in house.modules.values():
        if module.lines > LONGEST:
            yield module.complain(
                module.lines, f"goes on after {LONGEST} lines; split it where it tells two stories"
            )


def every_module_lists_what_it_offers(house: House) -> Iterator[str]:
    for module in house.modules.values():
        if module.is_door or module.name.endswith("__main__"):
            continue
        if not any(
            isinstance(target, ast.Name) and target.id == "__all__"
            for node in module.tree.body
            for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        ):
            yield module.complain(1, "has no __all__")


def a_door_is_one_docstring(house: House) -> Iterator[str]:
    for module in house.modules.values():
        if (
            module.is_door
            and module.name not in (*FACES, *FRONT_ROOMS)
            and (len(module.tree.body) != 1 or not ast.get_docstring(module.tree))
        ):
            yield module.complain(1, "the __init__ of a room is one docstring and nothing else")


def no_room_is_named_like_something_offered(house: House) -> Iterator[str]:
    for module in house.modules.values():
        if module.name in house.face_names:
            yield module.complain(
                1, f"{module.name!r} is also a name of the face, which an import would overwrite"
            )


Rule = Callable[[House], Iterator[str]]

RULES: list[Rule] = [
    every_room_has_a_floor,
    imports_run_down,
    shut_doors_stay_shut,
    nobody_imports_the_face,
    imports_form_no_circle,
    third_party_packages_stay_in_their_rooms,
    only_kernels_wait,
    concurrent_futures_keeps_to_its_homes,
    asyncio_is_named_for_its_exceptions_only,
    file_names_say_something,
    files_are_read_in_one_go,
    every_module_lists_what_it_offers,
    a_door_is_one_docstring,
    no_room_is_named_like_something_offered,
]


@pytest.fixture(scope="module")
def threadserve_house() -> House:
    return House(THREADSERVE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_threadserve_keeps_the_rule(rule: Rule, threadserve_house: House) -> None:
    complaints = sorted(set(rule(threadserve_house)))

    assert not complaints, "\n" + "\n".join(complaints)


def test_what_is_planned_is_not_built_and_all_else_is(threadserve_house: House) -> None:
    rooms = {module.room for module in threadserve_house.modules.values()}

    assert rooms == FLOORS.keys() - PLANNED
    assert FLOORS.keys() > PLANNED


def test_what_is_allowed_to_a_room_is_allowed_to_one_that_has_a_floor() -> None:
    doors = [room for door in SHUT_DOORS for room in door]
    allowed = [place for places in THIRD_PARTY.values() for place in places]

    named = {*doors, *allowed, *MAY_WAIT, *MAY_NAME_FUTURES, *MAY_NAME_ASYNCIO}

    assert {place.partition(".")[0] for place in named} <= FLOORS.keys()


def test_contributors_are_told_the_same_floors() -> None:
    told: dict[str, int] = {}
    for row in re.finditer(r"^\| (\d+) \| (.*?) \|", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE):
        for room in re.findall(r"`(\w+)`", row[2]):
            told["the face" if room == "__init__" else room] = int(row[1])

    assert told == {room: floor for room, floor in FLOORS.items() if room != "__main__"}


# A house without fault, and the faults that are planted in it.

SOUND = {
    "__init__.py": "__all__ = ['run']\nif TYPE_CHECKING:\n    from threadserve.api import run\n",
    "__main__.py": "from threadserve.cli.main import main\nmain()\n",
    "errors.py": "__all__ = []\nfrom concurrent.futures import CancelledError\n",
    "concurrency/__init__.py": "'How we wait.'\n",
    "concurrency/kernel.py": "__all__ = []\nimport threading, time\ntime.sleep(0)\n",
    "concurrency/future.py": "__all__ = []\nimport asyncio, concurrent.futures\nasyncio.Queue()\n",
    "call/__init__.py": "'What travels.'\n",
    "call/base.py": """
__all__ = ["ask"]
import time, asyncio
from threadserve.concurrency import kernel

def ask(loop: asyncio.AbstractEventLoop) -> None:
    try:
        asyncio.get_running_loop().create_task(time.monotonic())
    except asyncio.CancelledError:
        pass
""",
    "handle.py": """
__all__ = []
from threadserve.call.base import ask
if TYPE_CHECKING:
    import asyncio, concurrent.futures
""",
    "app/__init__.py": "'What the user declared.'\n",
    "app/config.py": "__all__ = []\nimport wrapt\nfrom threadserve.handle import ask\n",
    "app/schema.py": "__all__ = []\nfrom threadserve.app.config import ask\ndef load():\n    import yaml\n",
    "router/__init__.py": "'Who runs it.'\n",
    "router/router.py": "__all__ = []\nfrom ..app.config import wrapt\nfrom ..call import base\n",
    "api.py": "__all__ = []\nfrom threadserve.router.router import base\n",
    "cli/__init__.py": "'The command.'\n",
    "cli/main.py": "__all__ = []\nimport click\nfrom threadserve import api\nimport threadserve.call as c\n",
}

# Rule -> (file, its source, what every complaint says).
FAULTS: dict[Rule, list[tuple[str, str, str]]] = {
    every_room_has_a_floor: [("attic.py", "", "threadserve/attic.py:1: the room 'attic'")],
    imports_run_down: [
        (
            "handle.py",
            "\nimport threadserve.api as api",
            "threadserve/handle.py:2: handle (floor 4) imports up",
        ),
        ("handle.py", "def late():\n    from threadserve.api import run", "handle.py:2: "),
        ("handle.py", "if TYPE_CHECKING:\n    from threadserve.api import run", "handle.py:2: "),
        ("handle.py", "import importlib as i\ni.import_module('threadserve.api')", "handle.py:2: "),
        ("call/base.py", "from ..app import config", "call/base.py:1: call (floor 3) imports up"),
        ("futures.py", "from threadserve.handle import ask", "futures (floor 4) imports sideways"),
    ],
    shut_doors_stay_shut: [
        ("app/config.py", "from threadserve.concurrency import kernel", "nothing of concurrency"),
        ("app/config.py", "from threadserve.call.base import ask", "nothing of call"),
        ("router/router.py", "from threadserve.app.schema import load", "only app.config"),
    ],
    nobody_imports_the_face: [
        ("cli/main.py", "import threadserve", "cli/main.py:1: gets hold of the face"),
        ("cli/main.py", "import threadserve as serve", "cli/main.py:1: gets hold of the face"),
        ("cli/main.py", "import threadserve.api", "cli/main.py:1: gets hold of the face"),
        ("cli/main.py", "from threadserve import run", "cli/main.py:1: gets hold of the face"),
        ("cli/main.py", "from .. import run", "cli/main.py:1: gets hold of the face"),
    ],
    imports_form_no_circle: [
        (
            "app/config.py",
            "\nfrom threadserve.app.schema import load",
            "app.config -> app.schema",
        ),
        (
            "call/base.py",
            "def late():\n    import threadserve.handle as h",
            "call.base -> handle",
        ),
    ],
    third_party_packages_stay_in_their_rooms: [
        ("app/config.py", "import yaml", "imports yaml, which belongs to app.schema"),
        ("api.py", "def late():\n    from uvicorn import run", "api.py:2: imports uvicorn"),
        ("http/routes.py", "import numpy.linalg", "imports numpy, which has no room"),
    ],
    only_kernels_wait: [
        ("router/router.py", "from threading import Lock", "router/router.py:1: names threading.Lock"),
        ("router/router.py", "def late():\n    import _thread", "router/router.py:2: names _thread"),
        ("call/base.py", "import time as clock\nclock.sleep(1)", "call/base.py:2: names time.sleep"),
        ("call/base.py", "from time import sleep", "call/base.py:1: names time.sleep"),
        ("testing/simulate.py", "import queue", "testing/simulate.py:1: names queue"),
        ("cli/main.py", "import signal", "cli/main.py:1: names signal"),
    ],
    concurrent_futures_keeps_to_its_homes: [
        ("handle.py", "from concurrent import futures", "handle.py:1: names concurrent.futures"),
        ("api.py", "\nimport concurrent.futures as cf", "api.py:2: names concurrent.futures"),
    ],
    asyncio_is_named_for_its_exceptions_only: [
        ("api.py", "import asyncio", "api.py:1: names asyncio; asyncio belongs"),
        ("call/base.py", "import asyncio\nasyncio.Queue()", "base.py:2: names asyncio.Queue; here only"),
        ("call/base.py", "from asyncio import sleep", "base.py:1: names asyncio.sleep; here only"),
    ],
    file_names_say_something: [
        ("call/request_utils.py", "", "the name 'request_utils' says nothing"),
        ("router/manager.py", "", "the name 'manager' says nothing"),
        ("call/_private.py", "", "the name '_private' hides"),
    ],
    files_are_read_in_one_go: [
        ("call/base.py", "__all__ = []\n" * 601, "base.py:601: goes on after 600 lines")
    ],
    every_module_lists_what_it_offers: [("handle.py", "Handle = 1", "handle.py:1: has no __all__")],
    a_door_is_one_docstring: [
        ("call/__init__.py", "from .base import ask", "call/__init__.py:1: the __init__")
    ],
    no_room_is_named_like_something_offered: [("run.py", "", "run.py:1: 'run' is also a name of the face")],
}


def build(root: Path, files: dict[str, str]) -> House:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return House(root)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_house_gives_the_rule_no_cause(rule: Rule, tmp_path: Path) -> None:
    house = build(tmp_path / "threadserve", SOUND)

    assert list(rule(house)) == []


@pytest.mark.parametrize(
    ("rule", "fault"),
    [pytest.param(rule, fault, id=f"{rule.__name__}-{fault[0]}") for rule in RULES for fault in FAULTS[rule]],
)
def test_the_rule_finds_a_planted_fault(rule: Rule, fault: tuple[str, str, str], tmp_path: Path) -> None:
    file, source, said = fault
    house = build(tmp_path / "threadserve", SOUND | {file: source})

    complaints = list(rule(house))

    assert complaints
    assert all(said in complaint for complaint in complaints), complaints


IMPORT_EVERYTHING = """
import importlib, pkgutil, threadserve

def fail(name):
    raise

for module in pkgutil.walk_packages(threadserve.__path__, "threadserve.", onerror=fail):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # an extra that is not installed here
            if error.name.startswith("threadserve"):
                raise

for name in threadserve.__all__:
    home = importlib.import_module(threadserve._HOME_OF[name])
    assert getattr(threadserve, name) is getattr(home, name), name
"""


def test_importing_every_module_leaves_the_names_of_the_face_as_they_were() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING],
        cwd=THREADSERVE.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr


# The tests themselves.

# Of the simulator, which makes sleeping take no time.
IN_VIRTUAL_TIME = {
    f"testing/{name}.py" for name in ("apps", "test_search", "test_simulator", "test_watchdog")
}


def sleeps_and_hollow_claims(tree: ast.AST) -> Iterator[int]:
    """The lines of a test that wait by the clock, or assert what holds by itself."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="time"), attr="sleep"), args=[ast.Constant(value=0)]
            ):
                pass  # no wait, but a turn for somebody else
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr="sleep")):
                yield node.lineno
            case ast.ImportFrom(module="time", names=names) if any(alias.name == "sleep" for alias in names):
                yield node.lineno
            case ast.Assert(test=ast.Constant() | ast.Tuple()):
                yield node.lineno
            case _:
                pass


def test_tests_neither_sleep_nor_assert_what_holds_by_itself() -> None:
    complaints = [
        f"{path.relative_to(TESTS.parent).as_posix()}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.relative_to(TESTS).as_posix() not in IN_VIRTUAL_TIME
        and path.parent
        != TESTS / "parity" / "programs"  # they are for a cluster as well, whose clock is the real one
        for line in sleeps_and_hollow_claims(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert not complaints


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        ("import time\ntime.sleep(0.1)", True),
        ("import time\ntime.sleep(seconds)", True),
        ("from time import sleep", True),
        ("assert True", True),
        ("assert (done, 'not yet')", True),
        ("import time\ntime.sleep(0)", False),
        ("waiter.sleep(1)", False),
        ("assert done, 'not yet'", False),
    ],
)
def test_the_rule_for_tests_knows_what_it_looks_for(source: str, is_refused: bool) -> None:
    assert any(sleeps_and_hollow_claims(ast.parse(source))) == is_refused
