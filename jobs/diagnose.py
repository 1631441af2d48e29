r"""Ray job: say which samples a tuned model has not learned, why, and plan the repair.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.diagnose CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("diagnose", sys.argv[1:]))
