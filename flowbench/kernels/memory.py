"""How the C library's allocator treats the large tensors that come and go with every step."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1


def keep() -> None:
    """Keep freed memory for the next step instead of giving it back to the system.

    glibc returns large blocks at once and gets them anew, page by page, each to be cleared first:
    a tenth of a training step on a CPU. Elsewhere this does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MOST)
        mallopt(M_TRIM_THRESHOLD, MOST)
