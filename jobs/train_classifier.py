r"""Ray job: train a text classifier with hard or soft labels.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.train_classifier CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("train-classifier", sys.argv[1:]))
