"""What knows torch and transformers."""

import os

# Threads that compute together wait for each other after every product. OpenMP's would spin meanwhile, and hold the core that the
# last of them needs where anything else runs: a token then takes ten times as long. Read when torch is loaded; no other way.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
