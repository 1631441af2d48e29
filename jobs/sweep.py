r"""Ray job: search the settings of a stage that trains.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.sweep VERB CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("sweep", sys.argv[1:]))
