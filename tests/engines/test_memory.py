"""What is done with freed memory, seen from outside: what a process of its own holds and asks of the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are those of glibc")

PRELUDE = """
import resource
import numpy as np
from superst_monai.engines.memory import bound_memory, keep_memory
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def block():
    return np.ones(24 * 2**20, np.uint8)
"""


def printed(program: str) -> int:
    """The number that a program prints."""
    done = subprocess.run([sys.executable, "-c", PRELUDE + program], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("before", ["", "keep_memory(); block()"])
def test_large_blocks_go_back_to_the_system_when_they_are_freed(before: str) -> None:
    """What the process holds falls by a freed block that lies below one in use, whatever was set before."""
    program = f"""
{before}
bound_memory()
for _ in range(3):  # without a bound the C library would now keep blocks of this size
    block()
low, high = block(), block()
before = held()
del low
print(before - held())
"""
    assert printed(program) == pytest.approx(24 * 2**20, rel=0.05)


def test_kept_memory_is_not_asked_for_again() -> None:
    """A block of the same size touches no new page, also one larger than any that the C library keeps by itself."""
    program = """
keep_memory()
np.ones(96 * 2**20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(96 * 2**20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert printed(program) < 100  # of 24,576 pages a block
