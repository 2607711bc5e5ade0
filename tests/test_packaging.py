"""What is installed: from the source archive to a wheel to an import, with kernels/ as refnet.kernels."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import refnet

ROOT = Path(__file__).parents[1]
STEM = f"refnet-{refnet.__version__}"


def python(*arguments: object, cwd: Path, **environment: str) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, built in a copy, so that nothing is left behind in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("refnet", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    python("-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')", cwd=folder)
    return folder / "dist" / f"{STEM}.tar.gz"


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what the source archive holds and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    python("-c", "from setuptools.build_meta import build_wheel; build_wheel('dist')", cwd=folder / STEM)
    return folder / STEM / "dist" / f"{STEM}-py3-none-any.whl"


def modules(folder: str) -> set[str]:
    """The modules below a folder of the checkout."""
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}


def sources() -> set[str]:
    """What the CUDA kernels and their emulator are compiled from, and what is recorded of them."""
    files = [path for suffix in ("cu", "cuh", "h", "cpp", "json") for path in (ROOT / "kernels").rglob(f"*.{suffix}")]
    return {str(path.relative_to(ROOT)) for path in files}


def test_the_wheel_holds_every_module_and_no_top_level_kernels(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = modules("refnet") | {f"refnet/{name}" for name in modules("kernels")}
    assert "refnet/kernels/cpu/__init__.py" in expected
    assert names == expected | {"refnet/py.typed"} | {f"refnet/{name}" for name in sources()}


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        text = file.read(f"{STEM}.dist-info/entry_points.txt").decode()
        licence = file.read(f"{STEM}.dist-info/licenses/LICENSE").decode()
    assert "refnet = refnet.__main__:main" in text
    assert licence == (ROOT / "LICENSE").read_text()


def test_the_installed_package_is_imported_with_its_kernels(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    python(*install, "--target", target, wheel, cwd=tmp_path)
    assert not (target / "kernels").exists()
    code = "import refnet.kernels.cpu as cpu; refnet.kernels.install(); print(refnet.__file__, cpu.__file__)"
    files = python("-c", f"import refnet; {code}", cwd=tmp_path, PYTHONPATH=str(target)).split()
    assert files == [str(target / "refnet/__init__.py"), str(target / "refnet/kernels/cpu/__init__.py")]
    version = python("-m", "refnet", "--version", cwd=tmp_path, PYTHONPATH=str(target))
    assert version == f"refnet {refnet.__version__}\n"


def test_the_folder_kernels_is_not_a_module_of_that_name() -> None:
    code = "try:\n    import kernels\nexcept ImportError as error:\n    print(error)"
    assert "import refnet.kernels, not kernels" in python("-c", code, cwd=ROOT)
