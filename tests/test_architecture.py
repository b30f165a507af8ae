"""The rules of the package that its source alone can show: ladder, fences, forbidden calls and sizes."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "superst_monai"
CHECKOUT = Path(__file__).resolve().parents[1]
LADDER = (
    "errors",
    "types",
    "data",
    "transforms",
    "networks",
    "model",
    "engines",
    "inference",
    "analysis",
    "experiments",
    "cli",
)
FENCES = {
    "openslide": {"data"},
    "pyro": {"model", "inference"},
    "ignite": {"engines"},
    "matplotlib": {"analysis", "experiments", "cli"},
}
DYNAMIC_IMPORTS = {"import_module", "importlib.import_module", "__import__", "optional_import"}
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

Rule = Callable[[Path], list[str]]


class Source(NamedTuple):
    """One file of the package: its path under the package, its room ("" is the package itself) and its syntax."""

    path: str
    room: str
    text: str
    tree: ast.Module

    def at(self, node: ast.AST, fault: str) -> str:
        """The fault with its place, as an editor links it."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {fault}"


def sources(root: Path) -> Iterator[Source]:
    """Every Python file of the package under `root`."""
    for file in sorted((root / PACKAGE).rglob("*.py")):
        path = file.relative_to(root / PACKAGE)
        room = path.parts[0].removesuffix(".py").removesuffix("__init__")
        text = file.read_text(encoding="utf-8")
        yield Source(path.as_posix(), room, text, ast.parse(text))


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Full name of each module or name that is imported, wherever the import stands; `import_module("x")` is one."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((node, alias.name) for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield from ((node, f"{module}.{alias.name}") for alias in node.names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if called(node) in DYNAMIC_IMPORTS:
                yield node, name


def called(call: ast.Call) -> str:
    """Dotted name of what is called, as it is written."""
    return ast.unparse(call.func)


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Every call of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def ours(name: str) -> str | None:
    """Room of an imported name of this package; None if the name is not of this package."""
    head, _, rest = name.partition(".")
    return rest.split(".")[0] if head == PACKAGE else None


def no_later_room(root: Path) -> list[str]:
    """A room imports itself or an earlier one; the package's own `__init__` does so for type checkers only."""
    faults = []
    for source in sources(root):
        if source.room and source.room not in LADDER:
            faults.append(f"{source.path}:1: `{source.room}` is not a room of the ladder")
            continue
        for node, name in imports(source.tree):
            room = ours(name)
            if room is None or not source.room or name == f"{PACKAGE}.__version__":
                continue
            if room not in LADDER:
                faults.append(source.at(node, f"import of {name}: name the module that defines it"))
            elif LADDER.index(room) > LADDER.index(source.room):
                faults.append(source.at(node, f"{source.room} must not import the later room {room}"))
    return faults


def full_names(root: Path) -> list[str]:
    """No relative and no star import."""
    return [
        source.at(node, "import by full name")
        for source in sources(root)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and (node.level or any(alias.name == "*" for alias in node.names))
    ]


def fenced_libraries(root: Path) -> list[str]:
    """Some libraries are for some rooms only."""
    return [
        source.at(node, f"{library} belongs in {', '.join(sorted(FENCES[library]))}, not in {source.room or PACKAGE}")
        for source in sources(root)
        for node, name in imports(source.tree)
        if (library := name.split(".")[0]) in FENCES and source.room not in FENCES[library]
    ]


def no_parameter_store(root: Path) -> list[str]:
    """Parameters live in modules, never in Pyro's global store."""
    store = {"pyro.param", "pyro.module"}
    return [
        source.at(node, f"{name} keeps parameters in Pyro's global store; use nn.Parameter")
        for source in sources(root)
        for node, name in [*imports(source.tree), *((call, called(call)) for call in calls(source.tree))]
        if name in store
    ]


def no_pickle(root: Path) -> list[str]:
    """Nothing is pickled or unpickled."""
    faults = []
    for source in sources(root):
        for node, name in imports(source.tree):
            if name.split(".")[0] in PICKLERS:
                faults.append(source.at(node, f"{name} runs code from a file"))
        for call in calls(source.tree):
            allowed = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in call.keywords)
            if allowed or called(call).endswith((".read_pickle", ".to_pickle")):
                faults.append(source.at(call, f"{called(call)} runs code from a file"))
    return faults


def weights_only(root: Path) -> list[str]:
    """`torch.load` reads tensors only."""
    return [
        source.at(node, "torch.load needs weights_only=True, under its full name")
        for source in sources(root)
        for node, name in [*imports(source.tree), *((call, called(call)) for call in calls(source.tree))]
        if name == "torch.load"
        and not (
            isinstance(node, ast.Call)
            and any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        )
    ]


def no_evaluation(root: Path) -> list[str]:
    """No text is run as code."""
    return [
        source.at(call, f"{called(call)} runs text as code")
        for source in sources(root)
        for call in calls(source.tree)
        if called(call) in {"eval", "exec", "builtins.eval", "builtins.exec"}
    ]


def no_assert(root: Path) -> list[str]:
    """Bad input raises an error of the tree; `assert` vanishes under `python -O`."""
    return [
        source.at(node, "raise an error of errors.py instead of assert")
        for source in sources(root)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assert)
    ]


def short_files(root: Path) -> list[str]:
    """One idea fits a file."""
    sizes = ((source.path, source.text.count("\n")) for source in sources(root))
    return [f"{path}:1: {size} lines, at most {MAX_FILE_LINES}" for path, size in sizes if size > MAX_FILE_LINES]


def short_functions(root: Path) -> list[str]:
    """A function, its docstring aside, fits a screen."""
    faults = []
    for source in sources(root):
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            doc = node.body[0] if ast.get_docstring(node) is not None else None
            size = (node.end_lineno or 0) - node.lineno + 1
            size -= (doc.end_lineno or 0) - doc.lineno + 1 if doc else 0
            if size > MAX_FUNCTION_LINES:
                faults.append(source.at(node, f"{node.name} has {size} lines, at most {MAX_FUNCTION_LINES}"))
    return faults


RULES: tuple[Rule, ...] = (
    no_later_room,
    full_names,
    fenced_libraries,
    no_parameter_store,
    no_pickle,
    weights_only,
    no_evaluation,
    no_assert,
    short_files,
    short_functions,
)
PLANTED: tuple[tuple[Rule, str, str, str], ...] = (
    (no_later_room, "data/slide.py", "from superst_monai.model.guide import Guide", "slide.py:1: .*later room model"),
    (no_later_room, "errors.py", "import superst_monai.types", "errors must not import the later room types"),
    (no_later_room, "types.py", "def f():\n    import superst_monai.data.slide", "types.py:2: .*later room data"),
    (no_later_room, "model/m.py", "from superst_monai import cli", "later room cli"),
    (no_later_room, "model/m.py", "from superst_monai import open_maps", "name the module that defines it"),
    (no_later_room, "utils/things.py", "", "`utils` is not a room"),
    (full_names, "data/a.py", "from . import slide", "a.py:1: import by full name"),
    (full_names, "data/a.py", "from numpy import *", "a.py:1: import by full name"),
    (fenced_libraries, "transforms/a.py", "import openslide", "openslide belongs in data, not in transforms"),
    (fenced_libraries, "engines/a.py", "from pyro.infer import Trace_ELBO", "pyro belongs in inference, model"),
    (fenced_libraries, "model/a.py", "import ignite.engine as e", "ignite belongs in engines"),
    (fenced_libraries, "data/a.py", "import_module('matplotlib.pyplot')", "matplotlib belongs in .*, not in data"),
    (fenced_libraries, "__init__.py", "import matplotlib", "not in superst_monai"),
    (no_parameter_store, "model/a.py", "import pyro\npyro.param('w')", "a.py:2: pyro.param"),
    (no_parameter_store, "model/a.py", "from pyro import module", "a.py:1: pyro.module"),
    (no_pickle, "data/a.py", "import pickle", "a.py:1: pickle"),
    (no_pickle, "data/a.py", "from cloudpickle import dumps", "cloudpickle"),
    (no_pickle, "data/a.py", "np.load(f, allow_pickle=True)", "np.load runs code"),
    (no_pickle, "data/a.py", "pd.read_pickle(f)", "pd.read_pickle runs code"),
    (weights_only, "model/a.py", "torch.load(f)", "a.py:1: torch.load needs"),
    (weights_only, "model/a.py", "torch.load(f, weights_only=False)", "a.py:1: torch.load needs"),
    (weights_only, "model/a.py", "from torch import load", "under its full name"),
    (no_evaluation, "cli/a.py", "x = eval('1')", "a.py:1: eval runs"),
    (no_evaluation, "cli/a.py", "exec('1')", "a.py:1: exec runs"),
    (no_assert, "data/a.py", "def f(x):\n    assert x", "a.py:2: raise"),
    (short_files, "data/a.py", "x = 1\n" * 301, "a.py:1: 301 lines"),
    (short_functions, "data/a.py", "def f():\n" + "    x = 1\n" * 60, "a.py:1: f has 61 lines"),
)
LAWFUL = {
    "__init__.py": "from superst_monai.inference.maps import open_maps\n",
    "types.py": "from superst_monai.errors import ShapeError\n",
    "data/slide.py": "import openslide\nnp.load(f, allow_pickle=False)\n" + "x = 1\n" * 298,
    "model/guide.py": "import pyro\nfrom superst_monai.data.slide import Slide\npyro.sample('z', law)\n",
    "engines/run.py": "import ignite\nnetwork.eval()\ntorch.load(f, map_location='cpu', weights_only=True)\n",
    "cli/app.py": "from superst_monai import __version__\nimport matplotlib\n",
    "analysis/a.py": 'def f():\n    """One.\n' + "\n" * 100 + '    """\n' + "    x = 1\n" * 59,
}


def plant(root: Path, files: dict[str, str]) -> None:
    """Write a source tree of the package under `root`."""
    for path, text in files.items():
        file = root / PACKAGE / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    """The source of the package breaks none of its rules."""
    assert rule(CHECKOUT) == []


@pytest.mark.parametrize(("rule", "path", "text", "fault"), PLANTED)
def test_a_rule_catches_what_breaks_it(rule: Rule, path: str, text: str, fault: str, tmp_path: Path) -> None:
    """A violation planted in a lawful tree is the one fault that its rule reports."""
    plant(tmp_path, LAWFUL | {path: text})
    found = rule(tmp_path)
    assert len(found) == 1
    assert re.search(fault, found[0])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_lets_lawful_code_pass(rule: Rule, tmp_path: Path) -> None:
    """What looks like a violation and is none is not reported."""
    plant(tmp_path, LAWFUL)
    assert rule(tmp_path) == []
