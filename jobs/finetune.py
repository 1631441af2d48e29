r"""Ray job: fine-tune a model on chains.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.finetune CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("finetune", sys.argv[1:]))
