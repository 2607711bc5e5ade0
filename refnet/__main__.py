"""The program ``refnet``, and ``python -m refnet``: settings of the process first, then the command line."""

import os
import sys


def main() -> int:
    """Run the command line with one thread of BLAS and refnet's kernels on all cores.

    OpenBLAS's own threads wait for one another actively, so that next to any busy process a product takes many times
    as long; the kernels share their work among Python threads instead. BLAS reads the setting when NumPy is imported,
    which is why it comes before everything else. A value that is set already stays.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from refnet import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
