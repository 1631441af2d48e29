r"""Ray job: encode a collection of documents and build its index.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.index CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("index", sys.argv[1:]))
