r"""Ray job: score responses with a reward model.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.score CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("score", sys.argv[1:]))
