r"""Ray job: train a dense retriever on a collection in the BEIR layout.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.train_retriever CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("train-retriever", sys.argv[1:]))
