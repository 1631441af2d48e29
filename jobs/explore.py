r"""Ray job: search every problem's tree of reasoning steps.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.explore CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("explore", sys.argv[1:]))
