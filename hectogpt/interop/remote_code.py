"""The modelling file of a model that is no GPT-2: one file of Python that transformers runs, without this package.

The file is assembled from the package's own sources, so there is no second implementation to keep equal: from
hectogpt.model what computing logits needs, from a user's own file the classes that the model has, and remote_model.py.
Definitions are copied as they are written. Left out are training, first weights, checks of settings (they were made
when the model was built) and the C++ kernels.
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hectogpt import __version__, errors
from hectogpt.errors import UserError
from hectogpt.idea_file import IdeaFile
from hectogpt.interop.exported import PREFIX
from hectogpt.interop.module_source import Source, names_in
from hectogpt.model.config import ModelConfig
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import copied
from hectogpt.serialization import classes_in, idea_module

FILE = "modeling_hectogpt.py"
# The modules of the file, in its order, with their headings. The last is transformers' side.
MODULES = {
    "hectogpt.model.parts": "norms, activations, positions, attention parts",
    "hectogpt.model.inputs": "changes of the embedded tokens",
    "hectogpt.model.pointer": "a second distribution that copies earlier tokens",
    "hectogpt.model.lm_head": "the vocabulary head",
    "hectogpt.model.config": "the settings of a model",
    "hectogpt.model.attention": "causal attention",
    "hectogpt.model.transformer": "the transformer",
    "hectogpt.interop.remote_model": "transformers' side",
}
ROOTS = ("HectoGPTConfig", "HectoGPTForCausalLM", "ModelConfig", "LMHeadConfig")
HEADER = '''\
"""A transformer that was trained with hectoGPT {version}, in one file, for transformers:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

`hectogpt export` assembled the file from the package's sources{and_ideas}. It has what computing logits needs, copied
as it is written there. Annotations such as Float[Tensor, "batch time d"] tell shapes; nothing checks them.

hectoGPT: Copyright (c) 2026 the hectoGPT authors. MIT License:

{licence}"""
'''
LICENCE = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
SHARED = {"Float", "Int", "Bool", "Value"}  # the names of:
# What stands in the file for definitions that would bring much with them.
OWN = '''\
Float = Int = Bool = Annotated  # of tensors with a shape in words, such as "batch time d"


class Value:
    """Base of the settings that have a class of their own."""
'''


def assemble(config: ModelConfig, ideas: Sequence[IdeaFile]) -> str:
    """The source of the modelling file. ideas: the users' own files whose classes the model has, which are imported.

    Raises UserError (CHECKPOINT) if an own file needs what cannot be carried over, naming it.
    """
    sources = [Source(name, _read(name), heading) for name, heading in MODULES.items()]
    own = [Source(idea_module(i.sha256), i.source, "from a file of the model's author") for i in ideas]
    sources[-1:-1] = own
    by_name = {source.module: source for source in sources}
    taken: dict[str, set[str]] = {source.module: set() for source in sources}
    imports: dict[str, str] = {}  # name -> the statement that imports it
    wrapper = by_name["hectogpt.interop.remote_model"]
    todo = [(wrapper if root in wrapper.nodes else _home(root, sources), root) for root in ROOTS]
    for kind in classes_in(config):
        if kind.__module__ not in by_name:
            raise UserError(
                f"the model cannot be exported: its class {kind.__name__} comes from {kind.__module__}",
                why="classes are copied from the package and from a user's own file",
                fix="train FILE.py:FUNCTION with the class in that file",
                code=errors.CHECKPOINT,
            )
        todo.append((by_name[kind.__module__], kind.__name__))
    while todo:
        source, name = todo.pop()
        if name in wrapper.nodes and not source.is_idea:
            source = wrapper  # its LayerCache takes the place of the model's
        if name in taken[source.module]:
            continue
        taken[source.module].add(name)
        for used in names_in(source.nodes[name]):
            if used in source.nodes:
                todo.append((source, used))
            elif used in source.imports:
                todo += _resolve(source, used, by_name, imports)
            elif not hasattr(builtins, used) and used not in source.own_names:
                raise _cannot(source, f"{name} uses the name {used}, which the file does not define")
    _refuse_doubles(own, taken, imports)
    parts = [source.text(taken[source.module]) for source in sources]
    body = "\n\n\n".join(part for part in parts if part)
    return f"{_header(ideas)}\n{_import_lines(set(imports.values()))}\n\n{OWN}\n\n{body}\n"


def settings(value: Any) -> Any:
    """A model's settings as plain values of JSON, each object with its class under "type", as `read_settings` of the
    modelling file takes them. Raises UserError for a number that JSON lacks."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: settings(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [settings(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"the model has the setting {value}", why="config.json can hold finite numbers only")
    return value


def state_of(model: Transformer) -> dict[str, Tensor]:
    """The tensors of model.safetensors, by their names in the modelling file. A tied head is stored once."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    unsaved = {
        f"{path}.{name}".lstrip(".") for path, m in model.named_modules() for name in m._non_persistent_buffers_set
    }
    return {PREFIX + name: copied(tensor) for name, tensor in tensors.items() if name not in unsaved}


# --- following names --------------------------------------------------------------------------------------------------


def _resolve(
    source: Source, name: str, by_name: dict[str, Source], imports: dict[str, str]
) -> Iterator[tuple[Source, str]]:
    """Where an imported name comes from: a definition of the package, or a line for `imports`."""
    module, inner = source.imports[name]
    if module.startswith("hectogpt") and inner is not None:
        if name != inner:
            raise _cannot(source, f"it imports {inner} of {module} under the name {name}")
        module, inner = _origin(module, inner)
    if module in by_name and inner is not None and inner in by_name[module].nodes:
        yield by_name[module], inner
        return
    if module == "hectogpt.serialization" and inner == "Value":
        return
    if inner in ("Float", "Int", "Bool") and module == "jaxtyping":
        name, line = "Annotated", "from typing import Annotated"
    elif module.startswith(("hectogpt", ".")):
        raise _cannot(source, f"its classes use {inner or name} of {module}, which is not part of a model")
    elif source.is_idea and not _is_installed(module):
        raise _cannot(source, f"it imports {module}, which is no installed package")
    elif inner is None:
        line = f"import {module}" + (f" as {name}" if name != module else "")
    else:
        line = f"from {module} import {inner}" + (f" as {name}" if name != inner else "")
    if imports.setdefault(name, line) != line:
        raise _cannot(source, f"the name {name} stands for two things: {line}, and {imports[name]}")


def _origin(module: str, name: str) -> tuple[str, str]:
    """The module of the package that defines a name which `module` has, as `hectogpt` itself has its public names."""
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return module, name
    if name == "replace":
        return "dataclasses", name
    return getattr(value, "__module__", None) or module, name


def _is_installed(module: str) -> bool:
    """Whether an import of a user's file would work on a machine that has its packages, but not its folder."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [str(spec.origin or "")] if spec else []
    return any("site-packages" in place or "dist-packages" in place for place in places)


def _home(name: str, sources: Iterable[Source]) -> Source:
    return next(source for source in sources if name in source.nodes)


def _refuse_doubles(own: Sequence[Source], taken: dict[str, set[str]], imports: dict[str, str]) -> None:
    """Two things of one name cannot be in one file."""
    for source in own:
        others = {module: names for module, names in taken.items() if module != source.module}
        others |= {"what the file imports": set(imports), "what every such file has": SHARED}
        for what, names in others.items():
            if both := names & taken[source.module]:
                raise _cannot(source, f"the name {min(both)} is also one of {what}, and one file has room for one")


def _cannot(source: Source, why: str) -> UserError:
    what = source.heading.removeprefix("from ").partition(",")[0] if source.is_idea else source.module
    return UserError(
        f"the model cannot be exported: {what} does not fit into one file",
        why=why,
        fix="put what the model's classes need into that one file, and train again" if source.is_idea else "",
        code=errors.CHECKPOINT,
    )


# --- the file's beginning ---------------------------------------------------------------------------------------------


def _read(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _header(ideas: Sequence[IdeaFile]) -> str:
    and_ideas = " and a file of its author" if ideas else ""
    text = HEADER.format(version=__version__, and_ideas=and_ideas, licence=LICENCE)
    return f"{text}\nfrom __future__ import annotations\n"


def _import_lines(imports: set[str]) -> str:
    """Import statements, sorted as ruff does: standard library first, names of one module together."""
    grouped: dict[str, set[str]] = {}
    for line in imports:
        start, _, name = line.partition(" import ") if line.startswith("from ") else (line, "", "")
        grouped.setdefault(start, set()).update([name] if name else [])

    def place(start: str) -> tuple[bool, bool, str]:
        module = start.split()[1]
        return module.partition(".")[0] not in sys.stdlib_module_names, start.startswith("from"), module

    blocks: dict[bool, list[str]] = {False: [], True: []}
    for start in sorted(grouped, key=place):
        names = ", ".join(sorted(grouped[start], key=lambda name: (not name[0].isupper(), name.lower())))
        blocks[place(start)[0]].append(f"{start} import {names}" if names else start)
    return "\n\n".join("\n".join(block) for block in blocks.values() if block)
