"""The stages of the network don't import one another: model.py joins them, so each can be read and tested alone."""

import ast
from pathlib import Path

import pytest

import refnet.rcnn

FOLDER = Path(refnet.rcnn.__file__).parent
SHARED = {"config", "structures", "boxes", "masks", "layers"}  # what every stage may use
JOINING = {"model", "__init__", "presets"}
BESIDE = {"matterport"}  # for peers' programs; no stage and no model needs it
STAGES = sorted({path.stem for path in FOLDER.glob("*.py")} - SHARED - JOINING - BESIDE)


def imported(name: str) -> set[str]:
    """The modules of refnet.rcnn that a file imports, wherever in its text."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not node.level, f"{name}.py: imports are absolute"
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        parts = [module.split(".") for module in modules]
        found |= {part[2] for part in parts if part[:2] == ["refnet", "rcnn"] and len(part) > 2}
    return {name for name in found if (FOLDER / f"{name}.py").exists()}


def test_the_stages_are_known():
    assert {"anchors", "fpn", "heads", "losses", "proposals", "resnet", "roi_pool", "rpn", "targets", "vgg"} <= set(
        STAGES
    )


@pytest.mark.parametrize("stage", [*STAGES, *sorted(BESIDE)])
def test_stages_import_only_what_all_share(stage):
    assert imported(stage) <= SHARED


def test_the_model_joins_all_of_them():
    assert imported("model") == set(STAGES) | {"boxes", "config", "structures"}


def test_what_all_share_imports_no_stage():
    assert set().union(*(imported(name) for name in SHARED)) <= SHARED
