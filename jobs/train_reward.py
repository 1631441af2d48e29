r"""Ray job: train a structural reward model on preference pairs and ratings.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.train_reward CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("train-reward", sys.argv[1:]))
