r"""Ray job: measure how an index or BM25 ranks documents for judged queries.

ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
        python -m jobs.evaluate_retrieval CONFIG [key=value ...]
"""

import sys

from raylm.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("evaluate-retrieval", sys.argv[1:]))
