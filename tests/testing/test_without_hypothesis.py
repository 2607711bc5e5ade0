"""hypothesis is loaded when something is checked, and only then is it missed."""

import subprocess
import sys

WITHOUT = """
import sys
sys.modules["hypothesis"] = None  # as if it weren't installed
from refnet.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False)


def test_a_check_says_what_to_install():
    done = run("check", "nms")
    assert done.returncode == 2
    assert done.stderr.startswith("refnet: error: refnet.testing draws its examples with hypothesis")
    assert "pip install 'refnet[testing]'" in done.stderr


def test_operations_are_listed_all_the_same():
    done = run("check", "--list")
    assert done.returncode == 0, done.stderr
    assert "nms" in done.stdout


def test_gradients_are_checked_all_the_same():
    code = "import sys; from refnet.testing import check_gradients, Contract; print('hypothesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
