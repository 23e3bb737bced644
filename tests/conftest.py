"""One thread for each process of the tests, unless told otherwise: their models are tiny, and many run at a time.

Teams of threads that share two cores mostly wait for one another. Tests of threads choose their number themselves.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes tests start
if not Path("/dev/nvidia0").exists():  # without a GPU, Triton's kernels are interpreted; read when one is made
    os.environ.setdefault("TRITON_INTERPRET", "1")
