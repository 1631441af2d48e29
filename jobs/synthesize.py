r"""Ray job: write training chains from trees.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.synthesize CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("synthesize", sys.argv[1:]))
