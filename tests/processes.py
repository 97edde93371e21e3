"""The start of a command that runs a script in two processes, on a port of their own."""

import sys

TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
