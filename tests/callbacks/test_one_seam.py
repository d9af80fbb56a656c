"""One file replaces methods of Keras and finds the running `fit`, one uses private names; a model gets one hidden attribute."""

import ast

import keras
import pytest
from processes import ROOT
from small import BATCHES, fit, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard
from callbacks.model.fit_hooks import fit_hooks_of

SEAM = "callbacks/model/fit_hooks.py"
PRIVATE = "callbacks/model/keras_private.py"
PRIVATE_MODULES = ("keras.src.", "tf.python.", "tensorflow.python.", "tf.__internal__.")
PACKAGES = ("callbacks", "recipes", "launch")


def parse(*packages):
    """Returns path of a file, relative to the root -> its syntax tree."""
    paths = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(paths) > 10
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def methods_of_keras():
    """Returns the methods of a model and an optimizer, and the functions that `fit` creates."""
    kinds = (keras.Model, keras.Sequential, keras.optimizers.Adam, keras.optimizers.LossScaleOptimizer)
    made = {"train_function", "test_function", "predict_function"}
    return made | {name for kind in kinds for name in dir(kind) if callable(getattr(kind, name, None))}


def own_names(trees):
    """Returns private names that the files define: functions, classes, variables, attributes of `self`."""
    names = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                names.add(node.attr)
    return names


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def text_of(node, constants):
    """Returns the string of an expression that is a literal or a constant of the module; otherwise None."""
    value = constants.get(node.id) if isinstance(node, ast.Name) else node
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def constants_of(tree):
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if hasattr(target, "id")
    }


def replaced_methods(tree, methods):
    """Returns the assignments to methods of a model or an optimizer: (line, name)."""
    constants = constants_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)) and not is_self(node.value):
            if node.attr in methods:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr", "object.__setattr__"):
            owner, name = ast.unparse(node.args[0]), text_of(node.args[1], constants)
            if "callback" not in owner and (name is None or name in methods):
                yield node.lineno, name
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and is_namespace(ast.unparse(node.value)):
            yield node.lineno, ast.unparse(node)


def is_namespace(expression):
    return expression.startswith("vars(") or expression.endswith(".__dict__")


def looks_at_frames(tree):
    names = ("_getframe", "_current_frames", "currentframe", "f_back", "f_locals", "tb_frame")
    return any(isinstance(node, ast.Attribute) and node.attr in names for node in ast.walk(tree))


def private_names(tree, own):
    """Returns the private modules and names of other packages that a file uses: (line, name)."""
    constants = constants_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in modules if name.startswith(("keras.src", "tensorflow.python")))
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(PRIVATE_MODULES):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and not is_self(node.value):
            if node.attr not in own and ast.unparse(node.value) not in ("sys", "os"):
                yield node.lineno, node.attr
        elif (
            isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr") and not is_self(node.args[0])
        ):
            name = text_of(node.args[1], constants)
            if name and is_private(name):
                yield node.lineno, name


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_one_file_replaces_methods_of_models_and_optimizers():
    methods = methods_of_keras()
    assert {"train_step", "make_train_function", "train_function", "apply", "_backend_apply_gradients"} <= methods
    found = {file: list(replaced_methods(tree, methods)) for file, tree in parse(*PACKAGES).items()}
    assert {file: places for file, places in found.items() if places and file != SEAM} == {}
    assert found[SEAM]


def test_one_file_looks_for_the_running_fit():
    assert [file for file, tree in parse(*PACKAGES).items() if looks_at_frames(tree)] == [SEAM]


@pytest.mark.parametrize("package", PACKAGES)
def test_one_file_of_a_package_uses_private_names(package):
    trees = parse(package)
    own = own_names(trees)
    found = {file: list(private_names(tree, own)) for file, tree in trees.items()}
    using = {file: places for file, places in found.items() if places}
    assert len(using) <= 1, using
    if package == "callbacks":
        assert set(using) == {PRIVATE}


@pytest.mark.parametrize(
    "source",
    [
        "model.train_step = f",
        "self._model.train_function = f",
        "setattr(optimizer, 'apply', f)",
        "_NAME = 'apply'\nsetattr(optimizer, _NAME, f)",
        "setattr(model, name, f)",
        "vars(model)['call'] = f",
        "model.__dict__['call'] = f",
        "del model.train_step",
    ],
)
def test_an_assignment_elsewhere_would_be_found(source):
    assert list(replaced_methods(ast.parse(source), methods_of_keras()))


@pytest.mark.parametrize(
    "source",
    [
        "from keras.src.saving import saving_lib",
        "import tensorflow.python.eager",
        "keras.src.backend.x()",
        "tf.__internal__.tracking.AutoTrackable",
        "model._symbolic_build(data)",
        "getattr(model, '_eval_epoch_iterator', None)",
        "_NAME = '_learning_rate'\nhasattr(optimizer, _NAME)",
    ],
)
def test_a_private_name_elsewhere_would_be_found(source):
    assert list(private_names(ast.parse(source), set()))


def test_a_model_gets_one_hidden_attribute(tmp_path):
    plain, ours = small_model(), small_model()
    callbacks = [GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", save_freq=2), GlobalStepTensorBoard(tmp_path / "logs")]
    for model, given in ((plain, []), (ours, callbacks)):
        fit(model, *given)
    added = set(vars(ours)) - set(vars(plain))
    assert added - methods_of_keras() == {"callbacks.attached"}
    assert set(vars(ours.optimizer)) - set(vars(plain.optimizer)) == {"callbacks.attached"}


def test_a_skipped_execution_calls_the_functions_around_it_and_does_not_train():
    model, passed = small_model(), []
    hooks = fit_hooks_of(model)
    hooks.around_execution(lambda execute, iterator: [passed.append("around"), execute(iterator)][1])
    hooks.before_first_batch(lambda: passed.append("first"))
    skipped = iter([{"loss": 1.0}, {"loss": 2.0}])
    hooks.instead_of_execution(lambda iterator: next(skipped, None))
    hooks.after_execution(lambda: passed.append("after"))
    fit(model)
    assert passed == ["around", "first", "around", *["around", "after"] * (BATCHES - 2)]
    assert int(model.optimizer.iterations) == BATCHES - 2


def test_the_function_registered_last_is_called_first_and_survives_another_compile():
    model, traced = small_model(), []
    for name in ("inner", "outer"):
        fit_hooks_of(model).around_train_step(lambda step, data, name=name: [traced.append(name), step(data)][1])
    fit(model)
    model.compile("sgd", "mse", run_eagerly=True)
    fit(model)
    assert traced[:2] == ["outer", "inner"] and len(traced) >= 2 * BATCHES


def test_models_do_not_share_hooks():
    one, other, called = small_model(), small_model(), []
    fit_hooks_of(one).after_execution(lambda: called.append(one))
    fit(other)
    assert not called and fit_hooks_of(one) is not fit_hooks_of(other)
