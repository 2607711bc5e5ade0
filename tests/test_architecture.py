"""What must hold of the text as a whole: imports that stay light, and documentation that is complete."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from refnet.kernels.cpu.best_first import best_first
from refnet.rcnn.boxes import pairwise_iou

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "refnet").rglob("*.py"))
ALL_SOURCES = sorted([*SOURCES, *(ROOT / "kernels").rglob("*.py")])

HEAVY = ("pycocotools", "matplotlib", "cupy", "scipy", "PIL", "tyro", "tqdm", "torch", "beartype", "h5py", "hypothesis")

IMPORT = """
import sys, time
start = time.thread_time()
import refnet
for name in refnet.__all__:  # they are imported when they are asked for, so ask for all
    getattr(refnet, name)
seconds = time.thread_time() - start
print(seconds, *sys.modules)
"""


def imported(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_importing_refnet_is_quick() -> None:
    """NumPy and every public name included. The time of its own thread, the best of several: the machine may be busy."""
    assert min(float(imported(IMPORT)[0]) for _ in range(7)) < 0.25


def test_annotations_are_executed_while_the_tests_run() -> None:
    """In the specification and in kernels: what is passed to them in these tests has the shapes and types they state."""
    for wrong in (
        lambda: pairwise_iou(np.zeros((2, 3)), np.zeros((2, 4))),
        lambda: best_first(np.zeros(2, int), limit=1),
    ):
        with pytest.raises(TypeCheckError):
            wrong()


def test_public_names_are_those_of_their_homes() -> None:
    import refnet
    from refnet.autograd import Tensor
    from refnet.rcnn import MaskRCNN, presets

    assert (refnet.Tensor, refnet.MaskRCNN, refnet.presets) == (Tensor, MaskRCNN, presets)
    with pytest.raises(AttributeError, match="no attribute 'maskrcnn'"):
        _ = refnet.maskrcnn


@pytest.mark.parametrize(
    "module",
    ["refnet", "refnet.ops", "refnet.nn", "refnet.rcnn", "refnet.rcnn.model", "refnet.weights.files", "refnet.testing"],
)
def test_heavy_libraries_wait_until_they_are_needed(module: str) -> None:
    modules = imported(f"import sys, {module}; print(*sys.modules)")
    assert module in modules
    assert [name for name in HEAVY if name in modules] == []


def test_importing_refnet_registers_no_kernel() -> None:
    code = "import refnet.ops, refnet.kernels; print(refnet.kernels.installed())"
    assert "refnet.kernels" not in imported(code)


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """The module, its public functions and classes, and the public methods of these, by name."""
    yield "", tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        yield f"{node.name}.{member.name}", member


def may_go_without(name: str, node: ast.AST, classes: dict[str, ast.ClassDef]) -> bool:
    """Methods of which their class already says what they do: those that are declared or overridden, and properties
    that only return what they are called."""
    owner, _, method = name.partition(".")
    if not method or not isinstance(node, ast.FunctionDef):
        return False
    bases = {ast.unparse(base) for base in classes[owner].bases}
    overrides = bool(bases) and method in ("forward", "backward", "state", "load_state", "step")
    body = [statement for statement in node.body if not isinstance(statement, ast.Pass)]
    declared = isinstance(body[0], ast.Raise) or ("Protocol" in bases and isinstance(body[0], ast.Expr))
    named_by_itself = len(body) == 1 and isinstance(body[0], ast.Return) and bool(node.decorator_list)
    return overrides or declared or named_by_itself


@pytest.mark.parametrize("path", ALL_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    bare = [
        name or "the module"
        for name, node in definitions(tree)
        if not ast.get_docstring(node)  # type: ignore[arg-type]
        and not may_go_without(name, node, classes)
        and path.read_text().strip()
    ]
    assert bare == []


def config_fields() -> Iterator[tuple[str, bool]]:
    """Every field of every record called ...Config or ...Data, and whether a docstring stands below it.

    A field that is such a record itself is explained by the record's own docstring.
    """
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or not node.name.endswith(("Config", "Data")):
                continue
            for member, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(member, ast.AnnAssign) and not ast.unparse(member.annotation).endswith("Config"):
                    below = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    yield f"{node.name}.{ast.unparse(member.target)}", below


def test_every_field_of_a_configuration_is_explained() -> None:
    found = dict(config_fields())
    assert {"RpnConfig.nms_threshold", "TrainConfig.steps", "ShapesConfig.noise"} <= found.keys()
    assert [name for name, explained in found.items() if not explained] == []


def test_nothing_in_refnet_imports_cupy() -> None:
    assert [str(path) for path in SOURCES if "import cupy" in path.read_text()] == []


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    names = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [str(path) for path in ALL_SOURCES if path.name in names] == []


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX", "HACK"])
def test_nothing_is_left_to_do(word: str) -> None:
    assert [str(path) for path in ALL_SOURCES if word in path.read_text()] == []
