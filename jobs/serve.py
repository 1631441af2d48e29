r"""Serve reward models and retrievers from this machine, or on the cluster of RAY_ADDRESS.

    python -m jobs.serve reward|retriever|all CONFIG [key=value ...]

On a cluster that is there to stay, `serve deploy cluster/serve.yaml` deploys the same applications.
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("serve", sys.argv[1:]))
