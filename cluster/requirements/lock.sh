#!/usr/bin/env bash
# Rewrites the locks from pyproject.toml: cpu.txt, what dev.txt and bench.txt add to it, and gpu.txt, which stands alone.
# Needs uv. `lock.sh --upgrade` moves every pin forward.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=cluster/requirements

resolve() { # resolve "EXTRAS" ARGUMENTS...: print the pins of pyproject.toml with these extras
  local extras=()
  for extra in $1; do extras+=(--extra "$extra"); done
  uv pip compile pyproject.toml $here/base.in "${extras[@]}" --universal --python-version 3.10 \
    --excludes $here/excludes.txt --quiet --no-header "${@:2}"
}

head_line="# Written by $here/lock.sh; do not edit."

resolve "cpu models" --excludes $here/excludes-cpu.txt --output-file $here/cpu.txt "$@" >/dev/null
resolve "gpu models" --constraint $here/torch.txt --output-file $here/gpu.txt "$@" >/dev/null
sed -i "1i $head_line" $here/cpu.txt $here/gpu.txt
for extra in dev bench; do
  pins=$(resolve "cpu models $extra" --excludes $here/excludes-cpu.txt --no-annotate --constraint $here/cpu.txt)
  { echo "$head_line"; grep -vxFf $here/cpu.txt <<<"$pins"; } >$here/$extra.txt
done
