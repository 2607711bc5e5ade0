"""What a GPU executes: the instructions (SASS) of compiled kernels, counted by name.

NVIDIA's disassembler comes as the package ``nvidia-cuda-nvdisasm``, or with the CUDA toolkit. It takes 0.4 s to start,
so the machine code of many kernels is cut out of their cubins, which are ELF files, and disassembled as one text.
"""

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from refnet.errors import CompilerError
from refnet.kernels.cuda.nvrtc import Cubin

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]\s+)?([A-Z][A-Za-z0-9_.]*)", re.MULTILINE)
"""A line of a disassembly: its offset, a predicate perhaps, the instruction."""


def disassembler() -> Path | None:
    """The program nvdisasm, if it is installed."""
    for entry in sys.path:
        packaged = Path(entry) / "nvidia/cu13/bin/nvdisasm"
        if packaged.is_file():
            return packaged
    folders = [f"{home}/bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    found = shutil.which("nvdisasm", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    return Path(found) if found else None


def instructions(cubins: Sequence[Cubin], architecture: str) -> list[Counter[str]]:
    """How often each instruction stands in each of `cubins`, all of one `architecture`: ``{"LDG.E.128": 4, ...}``.

    Raises:
        CompilerError: there is no disassembler, or it fails.
    """
    program = disassembler()
    if program is None:
        raise CompilerError("nvdisasm: expected the package nvidia-cuda-nvdisasm, or a CUDA toolkit; found none")
    codes = [machine_code(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [str(program), "--no-dataflow", "--binary", architecture.replace("sm_", "SM"), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(f"nvdisasm: {done.stderr}")
    counts: list[Counter[str]] = [Counter() for _ in cubins]
    index, end = 0, len(codes[0]) if codes else 0
    for offset, name in INSTRUCTION.findall(done.stdout):
        while int(offset, 16) >= end:
            index += 1
            end += len(codes[index])
        counts[index][name] += 1
    return counts


def machine_code(cubin: Cubin) -> bytes:
    """The kernel's own section of the file, with the functions that it calls.

    Raises:
        CompilerError: the file has no such section.
    """
    data = cubin.path.read_bytes()
    start, entries, strings = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 60)
    headers = [struct.unpack_from("<IIQQQQ", data, start + 64 * entry) for entry in range(entries)]
    names = headers[strings][4]
    for name, _, _, _, offset, size in headers:
        if data.startswith(f".text.{cubin.symbol}\0".encode(), names + name):
            return data[offset : offset + size]
    raise CompilerError(f"{cubin.path.name}: expected a section .text.{cubin.symbol}, found none")


def helpers(cubin: Cubin) -> set[str]:
    """The functions that the compiler put into a kernel to call: of a division of 64-bit integers, for instance."""
    found = re.findall(rb"\$__internal_\d+_\$(\w+)\0", cubin.path.read_bytes())
    return {name.decode() for name in found}
