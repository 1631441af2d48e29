#!/usr/bin/env bash
# Rewrites cpu.txt, dev.txt and bench.txt from pyproject.toml. Needs uv; `lock.sh --upgrade` moves every pin forward.
set -euo pipefail
cd "$(dirname "$0")/../.."
where=cluster/requirements

resolve() { # resolve EXTRAS... -- ARGUMENTS...: print the pins for the given extras of pyproject.toml
  local extras=()
  while [ "$1" != -- ]; do extras+=(--extra "$1"); shift; done
  shift
  uv pip compile pyproject.toml "$where/base.in" "${extras[@]}" --universal --python-version 3.10 \
    --excludes "$where/excludes.txt" --quiet --no-header "$@"
}

write() { # write FILE: keep standard input as FILE, under a line that says where it comes from
  { echo "# Written by $where/lock.sh; do not edit."; cat; } >"$1.new"
  mv "$1.new" "$1"
}

[ -f $where/cpu.txt ] || : >$where/cpu.txt
resolve cpu models -- --output-file $where/cpu.txt "$@" >/dev/null
write $where/cpu.txt <$where/cpu.txt
for extra in dev bench; do # what the extra adds to cpu.txt
  resolve cpu models $extra -- --no-annotate --constraint $where/cpu.txt | grep -vxFf $where/cpu.txt | write $where/$extra.txt
done
