"""Import strings: what they load, and which half of a wrong one is told to be wrong."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any

import pytest

from threadserve.app.application import Application, binding_of
from threadserve.app.deployment import deployment
from threadserve.app.importer import load, load_application
from threadserve.errors import ConfigError, ImportStringError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

numbers = itertools.count()

APP = """
from threadserve.app.deployment import deployment

@deployment
class Adder:
    def __init__(self, increment=1): ...

class Plain: ...

class space:
    inner = Adder.bind(2)

app = Adder.bind(1)
number = 5

def build(args):
    return Adder.bind(int(args["increment"]))

def build_from_nothing(): ...
def build_from_two(args, more): ...
def build_a_number(args): return 5
def build_a_deployment(args): return Adder
def build_and_fail(args): return args["missing"]
"""


@pytest.fixture(autouse=True)
def import_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give ``sys.path`` and ``sys.modules`` back as they were."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])

    yield

    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., str]:
    """Write a module to import, and return its name."""

    def write(source: str = APP, name: str | None = None) -> str:
        name = name or f"user_module_{next(numbers)}"
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return name

    return write


@pytest.fixture
def app_dir(tmp_path: Path) -> str:
    return str(tmp_path)


class TestLoad:
    def test_a_colon_separates_module_and_attribute(self, module: Any, app_dir: str) -> None:
        assert load(f"{module()}:number", app_dir=app_dir) == 5

    def test_a_dot_does_so_too(self, module: Any, app_dir: str) -> None:
        assert load(f"{module()}.number", app_dir=app_dir) == 5

    def test_an_attribute_may_be_one_of_an_attribute(self, module: Any, app_dir: str) -> None:
        assert isinstance(load(f"{module()}:space.inner", app_dir=app_dir), Application)

    def test_a_module_may_stand_in_a_package(self, module: Any, app_dir: str) -> None:
        name = module(name=f"package_{next(numbers)}.part")

        assert load(f"{name}:number", app_dir=app_dir) == 5

    def test_without_a_folder_the_search_path_counts(self) -> None:
        assert load("math:pi") == pytest.approx(3.14159, abs=1e-4)

    def test_the_folder_comes_first_and_stays(self, module: Any, app_dir: str) -> None:
        name = module()

        load(f"{name}:number", app_dir=app_dir)
        load(f"{name}:app", app_dir=app_dir)

        assert sys.path[0] == app_dir
        assert sys.path.count(app_dir) == 1

    def test_a_relative_folder_is_made_absolute(
        self, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        load(f"{module()}:number", app_dir=".")

        assert sys.path[0] == str(tmp_path)

    def test_a_folder_that_is_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"app_dir '.*absent' is not a folder"):
            load("math:pi", app_dir=str(tmp_path / "absent"))


class TestWrongHalves:
    @pytest.mark.parametrize(
        ("import_string", "words"),
        [
            ("hello", "'hello' names no attribute; write module:attribute"),
            ("hello:", "'hello:' names no attribute"),
            (":app", "':app' names no module"),
            (".app", r"'\.app' names no module"),
            ("hello.py:app", r"'hello\.py:app' names a file"),
            ("examples/hello:app", "names a file"),
            ("hello.py", "names a file"),
            ("", "names no attribute"),
        ],
    )
    def test_a_string_of_another_form_is_refused(self, import_string: str, words: str) -> None:
        with pytest.raises(ImportStringError, match=words):
            load(import_string)

    def test_a_module_that_does_not_exist_is_told(self, app_dir: str) -> None:
        with pytest.raises(
            ImportStringError, match="'absent_module:app': there is no module 'absent_module'"
        ):
            load("absent_module:app", app_dir=app_dir)

    def test_a_misspelt_module_is_answered_with_the_nearest(self, module: Any, app_dir: str) -> None:
        name = module(name="recommendation_service")

        with pytest.raises(ImportStringError, match=f"did you mean '{name}'"):
            load("recomendation_service:app", app_dir=app_dir)

    @pytest.mark.parametrize("path", ["absent_package.part", "math.part"])
    def test_so_is_one_in_a_package_that_does_not_exist_or_is_none(self, path: str) -> None:
        with pytest.raises(ImportStringError, match="there is no module"):
            load(f"{path}:app")

    def test_a_misspelt_attribute_is_answered_with_the_nearest(self, module: Any, app_dir: str) -> None:
        name = module()

        with pytest.raises(
            ImportStringError, match=f"module '{name}' has no attribute 'aap'; did you mean 'app'"
        ):
            load(f"{name}:aap", app_dir=app_dir)

    def test_an_attribute_like_no_other_is_answered_with_the_applications(
        self, module: Any, app_dir: str
    ) -> None:
        with pytest.raises(ImportStringError, match=r"no attribute 'zzz'; its applications are: app$"):
            load(f"{module()}:zzz", app_dir=app_dir)

    def test_a_missing_attribute_of_an_attribute_names_that(self, module: Any, app_dir: str) -> None:
        with pytest.raises(
            ImportStringError, match=r"<class '.*space'> has no attribute 'iner'; did you mean 'inner'"
        ):
            load(f"{module()}:space.iner", app_dir=app_dir)

    @pytest.mark.parametrize(
        ("source", "error"),
        [
            ("import absent_dependency", ModuleNotFoundError),
            ("from math import absent", ImportError),
            ("1 / 0", ZeroDivisionError),
            ("def broken(:", SyntaxError),
            ("raise AttributeError('mine')", AttributeError),
        ],
    )
    def test_what_the_module_raises_itself_arrives_as_itself(
        self, module: Any, app_dir: str, source: str, error: type[Exception]
    ) -> None:
        with pytest.raises(error) as caught:
            load(f"{module(source)}:app", app_dir=app_dir)

        assert not isinstance(caught.value, ImportStringError)


class TestLoadApplication:
    def test_an_application_is_returned_as_it_is(self, module: Any, app_dir: str) -> None:
        application = load_application(f"{module()}:app", app_dir=app_dir)

        assert binding_of(application).args == (1,)

    def test_arguments_for_an_application_are_refused(self, module: Any, app_dir: str) -> None:
        with pytest.raises(ConfigError, match=r"is an application, which takes no arguments: \{'a': '1'\}"):
            load_application(f"{module()}:app", {"a": "1"}, app_dir)

    def test_a_builder_function_gets_the_arguments(self, module: Any, app_dir: str) -> None:
        application = load_application(f"{module()}:build", {"increment": "7"}, app_dir)

        assert binding_of(application).args == (7,)

    def test_a_builder_function_gets_an_empty_dict_without_arguments(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        declared = deployment(lambda: None, name="empty")
        seen: list[object] = []

        def build(args: dict[str, str]) -> Application[Any]:
            seen.append(args)
            return declared.bind()

        monkeypatch.setattr("math.build", build, raising=False)

        load_application("math:build")

        assert seen == [{}]

    @pytest.mark.parametrize(("name", "count"), [("build_from_nothing", 0), ("build_from_two", 2)])
    def test_a_builder_function_takes_exactly_one_argument(
        self, module: Any, app_dir: str, name: str, count: int
    ) -> None:
        with pytest.raises(TypeError, match=f"must take one parameter, a dict, not {count}"):
            load_application(f"{module()}:{name}", {}, app_dir)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("build_a_number", "must return an application, not 5$"),
            ("build_a_deployment", r"not <Deployment 'Adder'.*>; return Adder\.bind\(\.\.\.\)"),
        ],
    )
    def test_a_builder_function_returns_an_application(
        self, module: Any, app_dir: str, name: str, words: str
    ) -> None:
        with pytest.raises(TypeError, match=words):
            load_application(f"{module()}:{name}", {}, app_dir)

    def test_what_a_builder_function_raises_arrives_as_itself(self, module: Any, app_dir: str) -> None:
        with pytest.raises(KeyError, match="missing"):
            load_application(f"{module()}:build_and_fail", {}, app_dir)

    def test_a_deployment_is_answered_with_bind(self, module: Any, app_dir: str) -> None:
        with pytest.raises(ImportStringError, match=r"is a deployment, not an application; .*Adder\.bind\("):
            load_application(f"{module()}:Adder", None, app_dir)

    @pytest.mark.parametrize("name", ["Plain", "number"])
    def test_anything_else_is_refused(self, module: Any, app_dir: str, name: str) -> None:
        with pytest.raises(ImportStringError, match="is no application and no builder function"):
            load_application(f"{module()}:{name}", None, app_dir)
