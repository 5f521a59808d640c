"""Nothing executes from data (P9): the rules hold for the checkout, and each of them can fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support_executing import executing
from support_imports import read_package

ROOT = Path(__file__).resolve().parent.parent

#: What no module of ours may do; each by itself, as somebody in a hurry would write it.
FORBIDDEN = {
    "pickle": "import pickle",
    "a name of pickle": "from pickle import loads",
    "pickle's accelerator": "import _pickle",
    "pickle inside a function": "def f():\n    import pickle as p\n    return p.loads",
    "pickle by import_module": "import importlib\nimportlib.import_module('pickle')",
    "a computed import": "from importlib import import_module\nimport_module(name)",
    "a file as a module": "import importlib.util\nimportlib.util.spec_from_file_location('a', path)",
    "marshal": "import marshal",
    "shelve": "import shelve",
    "joblib": "import joblib",
    "processes that pickle": "from multiprocessing import Pool",
    "yaml": "import yaml",
    "jinja2": "from jinja2 import Template",
    "string templates": "from string import Template",
    "eval": "eval(text)",
    "eval under another name": "f = eval",
    "exec": "exec(text)",
    "compile": "compile(text, 'x', 'exec')",
    "__import__": "__import__(name)",
    "builtins": "import builtins\ngetattr(builtins, name)(text)",
    "a code object": "import types\ntypes.FunctionType(code, {})",
    "torch.load": "import torch\ntorch.load(path)",
    "torch.load with weights_only": "import torch\ntorch.load(path, weights_only=True)",
    "torch.load by name": "from torch import load\nload(path)",
    "torch.load under another name": "import torch as t\nt.load(path)",
    "torch.serialization": "import torch\ntorch.serialization.load(path)",
    "torch.jit": "import torch\ntorch.jit.load(path)",
    "torch.hub": "import torch.hub\ntorch.hub.load('a', 'b')",
    "torch.export": "from torch.export import load",
    "torch.package": "from torch.package import PackageImporter",
    "torch.save": "import torch\ntorch.save({}, path)",
    "numpy with pickle": "import numpy as np\nnp.load(path, allow_pickle=True)",
    "numpy by default": "import numpy as np\nnp.load(path)",
    "numpy by position": "import numpy as np\nnp.load(path, None, True)",
    "a shell": "import subprocess\nsubprocess.run(text, shell=True)",
    "a shell, truthy": "import subprocess\nsubprocess.Popen(text, shell=1)",
    "a shell in hidden options": "import subprocess\nsubprocess.run(text, **options)",
    "os.system": "import os\nos.system(text)",
    "os.popen": "from os import popen\npopen(text)",
    "os.execv": "import os\nos.execv(path, [])",
    "subprocess.getoutput": "import subprocess\nsubprocess.getoutput(text)",
    "a shell of asyncio": "import asyncio\nasyncio.create_subprocess_shell(text)",
    "an extension of SQLite": "import sqlite3\nsqlite3.connect(path).enable_load_extension(True)",
    "a logging configuration": "import logging.config\nlogging.config.fileConfig(path)",
    "what built-in names stand for": "__builtins__['eval'](text)",
    "a loader of source files": "import importlib.machinery as m\nm.SourceFileLoader(name, path)",
    "a module from a specification": "import importlib.util\nimportlib.util.module_from_spec(found)",
    "numpy's archives with pickle": "import numpy as np\nnp.lib.npyio.NpzFile(file, allow_pickle=allowed)",
    "subprocess.getstatusoutput": "import subprocess\nsubprocess.getstatusoutput(text)",
    "a code object of parts": "from types import CodeType",
    "an extension by name": "database.load_extension(path)",
    **{
        f"import {name}": f"import {name}"
        for name in ("cloudpickle", "code", "codeop", "copyreg", "dill", "imp", "jsonpickle", "mako.template")
    },
    **{f"import {name}": f"import {name}" for name in ("pickletools", "runpy", "xmlrpc.client", "zipimport")},
}
ALLOWED = {
    "a program without a shell": "import subprocess\nsubprocess.Popen([program], env=environ, shell=False)",
    "a regular expression": "import re\nre.compile(text)",
    "numpy without pickle": "import numpy as np\nnp.load(path, allow_pickle=False)",
    "safetensors": "from safetensors.numpy import load\nload(stored)",
    "torch's tensors": "import torch\ntorch.nn.GRU(8, 32)",
    "a method called load": "settings.load(path)",
}
#: Of these the linter, which everybody runs while writing, says so as well: name -> its rule.
LINTED = {
    "pickle": "TID251",
    "eval": "S307",
    "exec": "S102",
    "a shell": "S602",
    "os.system": "S605",
    "os.execv": "S606",
    "subprocess.getoutput": "S605",
}


def test_nothing_in_the_checkout_executes_data() -> None:
    """No module of daemon/ and models/ does any of it."""
    sources = read_package(ROOT)
    assert len(sources) > 60
    assert executing(sources) == []


@pytest.mark.parametrize("case", FORBIDDEN)
def test_each_way_to_execute_data_is_refused(case: str) -> None:
    """A module that does it is reported, with its line."""
    found = executing({"gruard.models.training.fit": FORBIDDEN[case]})
    assert found
    assert all(re.match(r"gruard\.models\.training\.fit:[12]: ", fault) for fault in found)


@pytest.mark.parametrize("case", ALLOWED)
def test_what_only_looks_like_it_is_allowed(case: str) -> None:
    """Safe neighbours of the forbidden are not reported."""
    assert executing({"gruard.daemon.edges.trainer": ALLOWED[case]}) == []


@pytest.mark.parametrize("case", LINTED)
def test_linter_refuses_the_usual_ones_too(case: str) -> None:
    """The project's own configuration of ruff reports it in a module of ours."""
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("needs ruff (pip install -e '.[check]')")
    done = subprocess.run(
        [ruff, "check", "--output-format", "json", "--stdin-filename", "daemon/edges/http.py", "-"],
        input=FORBIDDEN[case],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert LINTED[case] in {fault["code"] for fault in json.loads(done.stdout)}
