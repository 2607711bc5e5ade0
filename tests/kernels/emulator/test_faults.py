"""Every fault that the checker knows is planted, found, named and placed; without it the same kernel passes."""

import re
from pathlib import Path

import numpy as np
import pytest

from refnet.errors import KernelFault
from refnet.kernels import emulator
from refnet.kernels.cuda.program import Program
from refnet.kernels.emulator import running

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no g++: nothing can be emulated")

SOURCE = Path(__file__).with_name("faults.cu")
TEXT = SOURCE.read_text()
KERNELS = re.findall(r"__global__ void (\w+)\(", TEXT)
FAULTS = Program(SOURCE, KERNELS)

# the kind of each kernel's fault, and a part of its message
EXPECTED = {
    "read_past_end": ("memcheck", r"read of 4 bytes, 0 bytes past the end of argument 1"),
    "read_before_start": ("memcheck", r"read of 4 bytes, 4 bytes before argument 1"),
    "write_past_end": ("memcheck", r"write of 4 bytes, 0 bytes past the end of argument 2"),
    "vector_over_the_end": ("memcheck", r"read of 16 bytes, 0 bytes past the end of argument 1"),
    "atomic_past_end": ("memcheck", r"atomic operation of 4 bytes, 0 bytes past the end of argument 2"),
    "copy_past_end": ("memcheck", r"read of 4 bytes, 0 bytes past the end of argument 1"),
    "dynamic_shared_past_end": ("memcheck", r"write of 4 bytes, 0 bytes past the end of dynamic shared memory"),
    "declared_extent": ("memcheck", r"index outside an array's declared extent"),
    "local_array": ("memcheck", r"index outside an array's declared extent"),
    "misaligned_vector": ("memcheck", r"misaligned"),
    "write_to_const": ("memcheck", r"write in argument 1, which is const"),
    "follow_a_wild_pointer": ("memcheck", r"read of 4 bytes at 0x123450, far from all of the kernel's arrays"),
    "unwritten_static_shared": ("initcheck", r"read of byte 252 of __shared__ tile"),
    "unwritten_dynamic_shared": ("initcheck", r"read of byte 252 of dynamic shared memory"),
    "shared_of_another_block": ("initcheck", r"byte 0 of __shared__ tile, which nobody has written.*block \(1,0,0\)"),
    "read_an_output": ("initcheck", r"read of byte 0 of argument 2"),
    "output_not_written": ("initcheck", r"1 of 64 elements of argument 2 were never written, the first is element 0"),
    "copy_not_waited_for": ("initcheck", r"__shared__ tile, which nobody has written"),
    "copy_waited_for_by_one_thread": ("initcheck", r"__shared__ tile, which nobody has written"),
    "copy_never_waited_for": ("initcheck", r"copies are under way that it never waited for"),
    "copy_over_what_is_read": ("racecheck", r"races with a (read|write) by thread"),
    "misaligned_copy": ("memcheck", r"misaligned cp.async of 16 bytes"),
    "barrier_missing": ("racecheck", r"races with a .* by thread \(\d+,0,0\) of block \(0,0,0\): no __syncthreads"),
    "overwritten_while_read": ("racecheck", r"races with a .* no __syncthreads in between"),
    "two_threads_write": ("racecheck", r"write of byte 0 of argument 2 .*races with a write by thread \(0,0,0\)"),
    "warp_barrier_missing": ("racecheck", r"no __syncwarp or __syncthreads in between"),
    "warp_barrier_of_others": ("racecheck", r"no __syncwarp or __syncthreads in between"),
    "warp_barrier_for_a_block": ("racecheck", r"no __syncthreads in between"),
    "reader_of_another_warp": ("racecheck", r"races with a read by thread"),
    "blocks_write_the_same": ("racecheck", r"block \(0,0,0\): blocks aren't ordered"),
    "block_reads_anothers": ("racecheck", r"blocks aren't ordered"),
    "plain_beside_atomic": ("racecheck", r"races with a"),
    "bytes_of_one_word": ("racecheck", r"write of byte \d+ of __shared__ bytes"),
    "barriers_in_both_branches": ("synccheck", r"while thread \(0,0,0\) waits at another, faults.cu:\d+"),
    "return_before_barrier": ("synccheck", r"1 threads of the block ended before the __syncthreads"),
    "barrier_in_a_loop": ("synccheck", r"the thread ends without reaching|ended before"),
    "shuffle_with_the_dead": ("synccheck", r"lane 7"),
    "shuffle_from_outside_the_mask": ("synccheck", r"mask 0000ffff reads lane \d+, which isn't in it"),
    "lane_not_in_its_mask": ("synccheck", r"a vote with mask 7fffffff, which lacks the lane itself, 31"),
    "masks_that_differ": ("synccheck", r"mask 0000000f .*while lane 0 waits in a shuffle with mask ffffffff"),
    "lanes_that_do_different_things": ("synccheck", r"a shuffle with mask .* while lane 0 waits in a vote"),
    "deadlock": ("synccheck", r"deadlock: thread \(0,0,0\) waits in __syncthreads at .* waits in a shuffle"),
    "wait_for_another_block": ("synccheck", r"4194304 atomic operations by one thread: does the loop at faults"),
    "sum_overflow": ("overflow", r"in a sum"),
    "product_overflow": ("overflow", r"in a product"),
    "division_by_zero": ("overflow", r"division by zero"),
    "shift_too_far": ("overflow", r"shift"),
    "float_to_int": ("overflow", r"cast to it"),
    "nan_to_int": ("overflow", r"cast to it"),
    "trap": ("trap", r"__trap"),
}
ADDED_TO = {"atomic_past_end", "block_reads_anothers", "wait_for_another_block"}  # their y isn't a pure output
TWO_BLOCKS = {"shared_of_another_block", "blocks_write_the_same", "block_reads_anothers", "wait_for_another_block"}


def launch(name: str, wrong: int, **settings: int) -> None:
    blocks = 2 if name in TWO_BLOCKS else 1
    x, y = np.ones(64, np.float32), np.zeros(64 * blocks, np.float32)
    outputs = () if name in ADDED_TO else (2,)
    with running(mode="check", **settings):
        FAULTS.launch(np, name, (blocks,), (64,), (np.int32(wrong), x, y), shared=256, outputs=outputs)


def lines_of_fault(name: str) -> list[int]:
    """The lines of the kernel's text that are marked: one, or both sides of a race."""
    start = TEXT.index(f"__global__ void {name}(")
    end = TEXT.find("__global__", start + 1)
    return [TEXT.count("\n", 0, m.start()) + 1 for m in re.compile("// fault").finditer(TEXT, start, end)]


def test_every_kernel_has_its_entry() -> None:
    assert list(EXPECTED) == KERNELS


@pytest.mark.parametrize("name", KERNELS)
def test_a_planted_fault_is_found(name: str) -> None:
    kind, message = EXPECTED[name]
    with pytest.raises(KernelFault, match=message) as caught:
        launch(name, 1)
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{name}: {kind}: ")
    places = [f"faults.cu:{line}" for line in lines_of_fault(name)]
    assert not places or any(place in str(caught.value) for place in places)
    if name not in ("deadlock", "output_not_written"):
        assert re.search(r"; block \(\d,0,0\) thread \(\d+,0,0\)$", str(caught.value))


@pytest.mark.parametrize("name", KERNELS)
def test_without_it_the_kernel_passes_under_every_schedule(name: str) -> None:
    for seed in range(6):
        launch(name, 0, seed=seed)


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_found_under_other_schedules(name: str) -> None:
    """The kind may differ: which of two threads comes first decides what is noticed first."""
    for seed in range(1, 6):
        with pytest.raises(KernelFault):
            launch(name, 1, seed=seed)
