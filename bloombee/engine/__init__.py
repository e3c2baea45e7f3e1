"""What knows torch and transformers."""

import os

# Threads that compute together wait for each other after every product. OpenMP's would spin for a millisecond, and hold the core
# that the last of them needs where anything else runs: a token then takes ten times as long. Some microseconds are as quick where
# nothing else does. Read when torch is loaded; no other way.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
