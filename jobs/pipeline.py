r"""Ray job: search, synthesise, fine-tune and evaluate.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.pipeline CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("pipeline", sys.argv[1:]))
