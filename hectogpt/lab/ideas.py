"""Find a run by name: a built-in recipe, or one from a user's own file.

A function in a user's file takes a Run and returns one:

    FILE.py:FUNCTION            applied to the top of the ladder; in a comparison, to its first arm
    FILE.py:FUNCTION@BASE       applied to BASE, a recipe or another FILE.py:FUNCTION

Schedules, optimizers, model parts and data orders defined in the file work like built-in ones. A
run carries the hash of the source, so an edited file counts as a different idea.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hectogpt.data import find_tokenizer
from hectogpt.display import Note
from hectogpt.errors import DataError, UserError, unknown
from hectogpt.idea_file import IdeaFile, imported, load_idea, read_idea, remember, running
from hectogpt.lab import recipes
from hectogpt.lab.ladder import TOP
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.inputs import TokenTable
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.weights import hash_state, saved_tensors
from hectogpt.serialization import IDEA_MODULE, Value, dump
from hectogpt.training.run import FirstWeights, Run, load_run
from hectogpt.training.setup import open_source

SPEC = re.compile(r"(?P<path>.+?\.py):(?P<function>[^@]+)(@(?P<base>.+))?\Z")
MOST_CHECKED = 50_000_000  # parameters; larger models are not tried before training
LENGTH_CHECKED = 16  # tokens of the test row in `check_causal`


def is_idea(name: str) -> bool:
    """True if the name is that of an idea in a file, or looks like one."""
    return ":" in name or name.endswith(".py")


def find_run(name: str, base: str | Run = "top") -> Run:
    """The Run that a name stands for: a recipe, or FILE.py:FUNCTION[@BASE], which is imported.

    Args:
        name: the name.
        base: the name or Run that an idea without @BASE is applied to.

    Raises UserError for an unknown recipe, and for a file or function that cannot be used.
    """
    if not is_idea(name):
        return recipes.recipe(name)
    match = SPEC.match(name)
    if match is None:
        found = functions_of(read_idea(name)) if name.endswith(".py") else []
        function = found[0] if found and "idea" not in found else "idea"
        fix = f"{name.partition(':')[0].removesuffix('.py')}.py:{function}"
        raise UserError(
            f"{name}: which function?", why="an idea is written FILE.py:FUNCTION", fix=fix
        )
    base = match["base"] or base
    before = find_run(base) if isinstance(base, str) else base
    idea = read_idea(match["path"])
    run = run_of(idea, match["function"], before)
    remember(idea)
    return run


def run_of(idea: IdeaFile, name: str, before: Run) -> Run:
    """Apply a function of an idea file to `before` and return the new Run. Imports the file.

    Raises UserError as `find_run` does.
    """
    function = getattr(load_idea(idea), name, None)
    if not callable(function):
        raise no_function(idea, name)
    title = f"{idea.path.name}:{name}"
    with running(title):
        after = function(before)
    if not isinstance(after, Run):
        returned = "nothing" if after is None else type(after).__name__
        raise UserError(
            f"{title} returned {returned}, not a Run",
            why="an idea takes a Run and returns a changed one",
            fix="return replace(run, ...)",
        )
    label = title if before.recipe == TOP else f"{title}@{before.recipe}"
    ideas = (*before.ideas, *(() if idea.sha256 in before.ideas else (idea.sha256,)))
    run = replace(after, recipe=label, ideas=ideas)
    _check(title, run)
    return run


def functions_of(file: IdeaFile) -> list[str]:
    """Names of the public functions at the top level of a file, found without running it.

    Raises UserError if the file is not valid Python.
    """
    try:
        tree = ast.parse(file.source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file.path} is not Python", why=str(error)) from None
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
    ]


def no_function(file: IdeaFile, name: str) -> UserError:
    """The error for a function that the file does not define."""
    known = functions_of(file)
    what = f"{file.path.name} has no function {name!r}"
    if known:
        return unknown(what, name, known)
    fix = f"def {name}(run: Run) -> Run, as `hectogpt idea` writes it"
    return UserError(what, why="it defines no function", fix=fix)


# --- checks of the run that an idea returned


def _check(title: str, run: Run) -> None:
    """Check that a run survives being saved to a run file, and that its layers fit together.

    Raises UserError.
    """
    classes: dict[str, type] = {}
    for part in parts_of(run):
        if classes.setdefault(type(part).__name__, type(part)) is not type(part):
            raise UserError(
                f"{title}: two classes are called {type(part).__name__}",
                why="a run file stores classes by name",
                fix="rename one of them",
            )
    with running(title):
        again = load_run(dump(run))
    if again != run:
        changed = [
            f.name
            for f in dataclasses.fields(Run)
            if getattr(again, f.name) != getattr(run, f.name)
        ]
        raise UserError(
            f"{title}: changed by saving and loading the run: {', '.join(changed)}",
            why="its classes must be frozen dataclasses whose fields are numbers, strings, tuples "
            "or other such classes",
        )
    if any(type(part).__module__.startswith(IDEA_MODULE) for part in parts_of(run.model)):
        _check_shapes(title, run.model)
    with running(f"{title}: schedule"):
        factor = run.schedule.factor(0, run.steps)
    if not isinstance(factor, (int, float)) or not math.isfinite(factor):
        what = f"{title}: {type(run.schedule).__name__}.factor(0, {run.steps}) is {factor!r}"
        raise UserError(what, why="a schedule's factor must be a finite number")


def _check_shapes(title: str, model: ModelConfig) -> None:
    """Run the layers of a model with custom parts on two tokens. Raises UserError."""
    small = _without_vocabulary(model)
    if small.min_parameters() <= MOST_CHECKED:
        with running(f"{title}: the parts of the model do not fit together"), torch.no_grad():
            Transformer(small).hidden(
                torch.zeros(1, min(2, model.context_length), dtype=torch.long)
            )


def check_causal(run: Run) -> None:
    """Raise UserError if the run's model has custom parts and a position in it sees a later token.

    The test changes the last token and compares the outputs at all earlier positions, in training
    and in evaluation mode. A model that cannot be tried passes.
    """
    own = [
        part
        for part in parts_of(run.model)
        if type(part).__module__.partition(".")[0] != "hectogpt"
    ]
    inputs = tuple(part for part in run.model.inputs if part in own)
    small = replace(_without_vocabulary(run.model), inputs=inputs)
    if not own or small.min_parameters() > MOST_CHECKED:
        return
    ids = torch.arange(min(LENGTH_CHECKED, run.model.context_length))[None] % 3
    other = torch.cat((ids[:, :-1], (ids[:, -1:] + 1) % 3), dim=1)
    sees = False
    with suppress(UserError), running(run.recipe), torch.no_grad():
        torch.set_num_threads(
            1
        )  # more threads would not be faster here; `running` restores their number
        torch.manual_seed(0)
        model = Transformer(small)
        for parameter in model.parameters():  # a weight of zero would hide the parts behind it
            parameter.add_(torch.randn_like(parameter) / 10)

        def earlier(ids: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(0)
            return model.hidden(ids)[:, :-1]

        for training in (False, True):
            model.train(training)
            before = earlier(ids)
            after = earlier(other)
            if (before - after).abs().max() > 1e-4 * before.abs().max():
                # If the same input gives different outputs too, the last token is not the cause.
                sees |= torch.equal(earlier(ids), before)
    if sees:
        names = ", ".join(dict.fromkeys(type(part).__name__ for part in own))
        raise UserError(
            f"{run.recipe} sees the future ({names})",
            why="a different last token changes the outputs at earlier positions",
            fix="use only earlier positions, as shift and masked attention do",
        )


def _without_vocabulary(model: ModelConfig) -> ModelConfig:
    """The model with a vocabulary of four tokens, and without the parts that have large tables."""
    return replace(
        model,
        vocab_size=4,
        inputs=(),
        value_embeddings=(TokenTable(),) if model.value_embeddings else (),
        lm_head=LMHeadConfig(),
        pointer=None,
        document_start=None if model.document_start is None else 3,
    )


def parts_of(value: Any) -> Iterator[Value]:
    """Yield every exchangeable part inside a value, including the value itself."""
    if isinstance(value, Value):
        yield value
    inner: Iterable[Any] = value if isinstance(value, tuple) else ()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = (getattr(value, field.name) for field in dataclasses.fields(value))
    for item in inner:
        yield from parts_of(item)


# --- the files of a run


def folder_name(name: str) -> str:
    """The name of the run's folder: the recipe's name, or FILE-FUNCTION for an idea."""
    match = SPEC.match(name)
    if match is None:
        return name
    stem = re.split(r"[\\/]", match["path"])[-1].removesuffix(".py")
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "-", f"{stem}-{match['function']}").strip("-.")[:64] or "idea"
    )


def base_name(recipe: str) -> str:
    """The recipe that a run's idea was applied to, taken from the run's name.

    The name of a recipe is returned unchanged.
    """
    if not is_idea(recipe):
        return recipe
    last = recipe.rpartition("@")[2]
    return "top" if is_idea(last) else last


# --- runs that start from another model's weights


def start_from(
    run: Run,
    source: str,
    idea: Sequence[Path | str] = (),
    note: Note = warnings.warn,
) -> Run:
    """The run with the model of `source`, starting from its weights.

    Rows of the text are cut to the model's context. If the model has custom classes, their idea
    files are added to the run's.

    Args:
        run: the run to change.
        source: a run folder, a folder in Hugging Face's layout, or a name on the hub.
        idea: idea files for the model's classes, as in `open_model`.
        note: called with messages for the user.

    Raises UserError as `open_model` does, and UserError (DATA) if the model's tokenizer differs
    from the text's.
    """
    folder = Path(source).expanduser()
    source = str(folder.resolve()) if folder.is_dir() else source
    model, tokenizer = open_source(source, idea, note)
    if tokenizer.sha256 != find_tokenizer(run.corpus).sha256:
        raise DataError(
            f"the tokenizer of {source} is not the text's",
            why=f"the token ids of {run.corpus} stand for different words there",
            fix="choose a text and a model with the same tokenizer",
        )
    modules = sorted({type(part).__module__ for part in parts_of(model.config)})
    files = [file for name in modules if (file := imported(name))]
    for file in files:
        remember(file)  # the user has run it; the training process will open the weights again
    own = dict.fromkeys((*run.ideas, *(file.sha256 for file in files)))
    first = FirstWeights(source, hash_state(saved_tensors(model)))
    data = replace(run.data, seq_len=min(run.data.seq_len, model.config.context_length))
    return replace(run, model=model.config, data=data, first_weights=first, ideas=tuple(own))
