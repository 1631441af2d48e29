r"""Ray job: score a model on suites of problems.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.evaluate CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("evaluate", sys.argv[1:]))
