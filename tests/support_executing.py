"""What could run code out of bytes, a text or a file: a checker that reads it off the syntax trees.

Promise P9 for our own code: no pickle in any of its clothes, no evaluation, no shell, no loader of torch's,
no template, no import by file name. It cannot be switched off line by line, as a linter can.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Modules whose business it is.
MODULES = frozenset(
    {
        *(
            "_pickle",
            "builtins",
            "cloudpickle",
            "code",
            "codeop",
            "copyreg",
            "dill",
            "imp",
            "jinja2",
            "joblib",
        ),
        *("jsonpickle", "mako", "marshal", "multiprocessing", "pickle", "pickletools", "runpy", "shelve"),
        *("xmlrpc", "yaml", "zipimport"),
    }
)
#: What belongs to a module that is otherwise harmless; everything below a name counts too.
NAMES = frozenset(
    {
        *("__builtins__", "__import__", "compile", "eval", "exec"),
        *("importlib.machinery", "importlib.util.module_from_spec", "importlib.util.spec_from_file_location"),
        *("logging.config", "string.Template"),
        *("types.CodeType", "types.FunctionType"),
        *("asyncio.create_subprocess_shell", "os.popen", "os.system"),
        *("subprocess.getoutput", "subprocess.getstatusoutput"),
        *(f"torch.{name}" for name in ("export", "hub", "jit", "load", "package", "save", "serialization")),
    }
)
#: os.execv, os.spawnlp and their like.
_STARTS = ("os.exec", "os.posix_spawn", "os.spawn")
#: Methods that load native code into SQLite.
_METHODS = frozenset({"enable_load_extension", "load_extension"})
#: Keywords that must be missing or literally False.
_SWITCHES = frozenset({"allow_pickle", "shell"})


def executing(sources: Mapping[str, str]) -> list[str]:
    """What could run foreign code, as `module:line: sentence`; `sources` is module name -> source text."""
    found = []
    for module, text in sources.items():
        tree = ast.parse(text, filename=module)
        known = _bindings(tree)
        for node in ast.walk(tree):
            found += [f"{module}:{line}: {fault}" for line, fault in _faults(node, known)]
    return list(dict.fromkeys(found))


def _faults(node: ast.AST, known: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        for name in _imported(node):
            if name.partition(".")[0] in MODULES or _is_banned(name):
                yield node.lineno, f"imports {name}"
    elif isinstance(node, ast.Name | ast.Attribute):
        name = _dotted(node, known)
        if _is_banned(name):
            yield node.lineno, f"uses {name}"
        if isinstance(node, ast.Attribute) and node.attr in _METHODS:
            yield node.lineno, f"calls {node.attr}"
    elif isinstance(node, ast.Call):
        yield from _call_faults(node, _dotted(node.func, known))


def _call_faults(node: ast.Call, name: str) -> Iterator[tuple[int, str]]:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    for switch in _SWITCHES & given.keys():
        if not _is_false(given[switch]):
            yield node.lineno, f"switches {switch} on"
    if name == "numpy.load" and not _is_false(given.get("allow_pickle")):
        yield node.lineno, "calls numpy.load without allow_pickle=False"
    if name.startswith("subprocess.") and None in given:
        yield node.lineno, f"calls {name} with options that cannot be seen here"
    if name.endswith("import_module"):
        target = node.args[0] if node.args else None
        if not isinstance(target, ast.Constant):
            yield node.lineno, "imports a module whose name is computed"
        elif str(target.value).partition(".")[0] in MODULES:
            yield node.lineno, f"imports {target.value}"


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.level == 0:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_banned(name: str) -> bool:
    levels = name.split(".")
    parents = {".".join(levels[:length]) for length in range(1, len(levels) + 1)}
    return bool(parents & NAMES) or name.startswith(_STARTS)


def _bindings(tree: ast.Module) -> dict[str, str]:
    """Names bound by imports -> what they stand for, dotted."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _dotted(node: ast.expr, known: Mapping[str, str]) -> str:
    """The full name of an expression; empty when it is none."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, known)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def _is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False
