"""Switch points at every line of some files, so that races between two operations of the runtime are found too."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from _thread import allocate_lock
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from threadserve.call.request import CURRENT
from threadserve.testing.stand_ins import here
from threadserve.testing.turns import Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType, FrameType, ModuleType

    from threadserve.testing.scheduler import SimulatedKernel

__all__ = ["Lines", "close", "files_of", "own_modules"]

_PACKAGE = Path(__file__).parents[1]
# Where a real lock is held: it is shared with real threads, and nobody must stop there.
_UNSTOPPABLE = ("testing", "api.py", "call/directory.py", "concurrency/real.py", "concurrency/threads.py")
_LAST_LINES = 10_000
_monitoring: Any = getattr(sys, "monitoring", None)  # since Python 3.12
_HAS_EVENTS = _monitoring is not None


class Line(NamedTuple):
    """Where a thread is."""

    code: CodeType
    number: int

    @property
    def label(self) -> str:
        """Its file, number and function."""
        return f"{Path(self.code.co_filename).name}:{self.number} in {self.code.co_qualname}"


def files_of(targets: Iterable[Any]) -> set[str]:
    """Return the files in which the code of classes and functions stands."""
    found: set[str] = set()
    for target in targets:
        for base in inspect.getmro(target)[:-1] if isinstance(target, type) else (target,):
            members = vars(base).values() if isinstance(base, type) else (base,)
            for member in members:
                member = inspect.unwrap(getattr(member, "__func__", member))  # noqa: PLW2901
                code = getattr(member, "__code__", None)
                if isinstance(code, types.CodeType):
                    found.add(code.co_filename)
    return {name for name in found if name != "<string>" and not Path(name).is_relative_to(_PACKAGE)}


def own_modules() -> dict[str, ModuleType]:
    """Return the modules of threadserve's in which a thread may stop, by their files."""
    return {
        module.__file__: module
        for name, module in list(sys.modules.items())
        if name.startswith("threadserve.")
        and module.__file__ is not None
        and not Path(module.__file__).relative_to(_PACKAGE).as_posix().startswith(_UNSTOPPABLE)
    }


@functools.lru_cache(maxsize=4096)
def _torn_stores(code: CodeType) -> frozenset[int]:
    """Return the offsets at which a line stores what it has read before: ``self.n += 1`` is two steps, not one."""
    torn: set[int] = set()
    read: set[tuple[str, object]] = set()
    line = None
    for instruction in dis.get_instructions(code):
        number = instruction.positions.lineno if instruction.positions else None
        if number != line:
            line, read = number, set()
        kind, _, what = instruction.opname.partition("_")
        what = what.partition("_")[0] if what.startswith(("ATTR", "GLOBAL", "DEREF", "SUBSCR")) else what
        if kind == "LOAD" and what in _SHARED:
            read.add((what, instruction.argval))
        elif (kind == "BINARY" and what.startswith("SUBSCR")) or (
            kind == "BINARY" and instruction.argrepr == "[]"
        ):
            read.add(("SUBSCR", None))
        elif kind == "STORE" and (what, instruction.argval if what != "SUBSCR" else None) in read:
            torn.add(instruction.offset)
    return frozenset(torn)


_SHARED = ("ATTR", "GLOBAL", "DEREF")


class Lines:
    """Makes every line of the code in `files` a switch point, for the threads of one simulation.

    Args:
        kernel: The simulation's.
        in_plain_code: Whether main stops also where it works for no request.
    """

    def __init__(self, kernel: SimulatedKernel, in_plain_code: bool) -> None:
        self.files: set[str] = set()
        self._kernel = kernel
        self._in_plain_code = in_plain_code
        self._before: Any = None

    def look_for(self, files: set[str], modules: Iterable[ModuleType], targets: Iterable[Any] = ()) -> None:
        """Stop in `files` too, of which `modules` and `targets` are made."""
        self.files |= files
        if _HAS_EVENTS:
            _events.look_for(files, modules, targets)

    def begin(self) -> None:
        """Begin, on the thread that is main."""
        if _HAS_EVENTS:
            _events.add(self)
        else:
            self._before = sys.gettrace()
            sys.settrace(self._on_call)

    def end(self) -> None:
        """End, on the same thread."""
        if _HAS_EVENTS:
            _events.remove(self)
        else:
            sys.settrace(self._before)

    def run(self, fn: Callable[[], object]) -> object:
        """Run `fn`, all that another thread than main does."""
        if _HAS_EVENTS:
            return fn()
        sys.settrace(self._on_call)
        try:
            return fn()
        finally:
            sys.settrace(None)

    def stop(self, code: CodeType, number: int) -> bool:
        """Be at a line: a switch point for a thread of this simulation that is not in the kernel; False for others."""
        kernel = here()
        if kernel is None or kernel is not self._kernel:
            return False
        turns = kernel.turns
        me = turns.current
        if (
            me is None
            or turns.is_busy
            or (me.number == 0 and not self._in_plain_code and CURRENT.get() is None)
        ):
            return True
        if turns.is_ending:
            me.last_steps += 1
            if me.last_steps > _LAST_LINES:
                raise Ended
            return True
        turns.is_busy = True
        try:
            turns.log(me, "line", Line(code, number))
            turns.pause(me)
        except BaseException as failure:
            turns.blame(failure)
            raise
        finally:
            turns.is_busy = False
        return True

    def _on_call(self, frame: FrameType, _event: str, _arg: object) -> Any:
        code = frame.f_code
        if code.co_filename not in self.files:
            return None
        torn = _torn_stores(code)
        frame.f_trace_opcodes = bool(torn)

        def on_event(frame: FrameType, event: str, _arg: object) -> Any:
            if event == "line" or (event == "opcode" and frame.f_lasti in torn):
                self.stop(code, frame.f_lineno)
            return on_event

        return on_event


class _Events:
    """The events of ``sys.monitoring``, shared by all that watch lines.

    They are asked for before the code runs. To ask when it begins gives its first call other events than the later ones.
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._tool: int | None = None  # guarded by _lock, as all below
        self._files: set[str] = set()
        self._marked: dict[CodeType, None] = {}
        self._watchers: tuple[Lines, ...] = ()  # replaced and never changed

    def add(self, lines: Lines) -> None:
        """Begin to have ``lines.stop`` called."""
        with self._lock:
            self._watchers = (*self._watchers, lines)
            if self._tool is None:
                self._open()

    def look_for(self, files: set[str], modules: Iterable[ModuleType], targets: Iterable[Any]) -> None:
        """Have the lines of `files` reported that are in code of `modules` and `targets`."""
        with self._lock:
            if self._tool is None:
                return
            events = _monitoring.events
            holders = [module for module in modules if getattr(module, "__file__", None) not in self._files]
            self._files |= {str(getattr(module, "__file__", None)) for module in holders}
            for code in codes_in(holders, targets):
                if code.co_filename in files and code not in self._marked:
                    wanted = events.LINE | (events.INSTRUCTION if _torn_stores(code) else 0)
                    _monitoring.set_local_events(self._tool, code, wanted)
                    self._marked[code] = None

    def remove(self, lines: Lines) -> None:
        """Have it called no more."""
        with self._lock:
            self._watchers = tuple(other for other in self._watchers if other is not lines)

    def close(self) -> None:
        """Give the events back, if nobody watches."""
        with self._lock:
            if self._tool is None or self._watchers:
                return
            tool, self._tool = self._tool, None
            for code in self._marked:
                _monitoring.set_local_events(tool, code, 0)
            self._marked.clear()
            self._files.clear()
            _monitoring.free_tool_id(tool)

    def _open(self) -> None:
        monitoring = _monitoring
        self._tool = tool = next(tool for tool in (4, 3, 5, 1, 0, 2) if monitoring.get_tool(tool) is None)
        monitoring.use_tool_id(tool, "threadserve simulator")
        monitoring.register_callback(tool, monitoring.events.LINE, self._at_line)
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, self._at_instruction)

    def _at_line(self, code: CodeType, number: int) -> None:
        for lines in self._watchers:
            if code.co_filename in lines.files and lines.stop(code, number):
                return

    def _at_instruction(self, code: CodeType, offset: int) -> None:
        if offset in _torn_stores(code):
            self._at_line(code, _line_at(code, offset))


def codes_in(modules: Iterable[ModuleType], targets: Iterable[Any]) -> Iterator[CodeType]:
    """Return the code of all functions in `modules`, and of `targets`, with what is defined inside of them."""
    seen: set[int] = set()
    found: list[Any] = [*targets, *(value for module in modules for value in list(vars(module).values()))]
    while found:
        value = found.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.CodeType):
            yield value
            found.extend(const for const in value.co_consts if isinstance(const, types.CodeType))
        elif isinstance(value, type):
            for base in value.__mro__:
                found.extend(list(vars(base).values()))
        elif isinstance(value, property):
            found.extend((value.fget, value.fset, value.fdel))
        elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
            found.append(value.__func__)
        elif isinstance(value, types.FunctionType):
            found.append(value.__code__)
            found.append(getattr(value, "__wrapped__", None))


_events = _Events()
close = _events.close
"""Give the events of ``sys.monitoring`` back."""


def _line_at(code: CodeType, offset: int) -> int:
    found = (line for start, end, line in code.co_lines() if start <= offset < end)
    return next(found, None) or code.co_firstlineno
