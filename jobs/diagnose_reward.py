r"""Ray job: find out where a reward model errs, and which dimension is at fault.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.diagnose_reward CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("diagnose-reward", sys.argv[1:]))
