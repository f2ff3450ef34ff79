#!/usr/bin/env bash
# Configures and builds a preset quietly: a line at the start and one at the end, the compiler's output only if it fails.
# Usage: tools/build.sh [release|asan|tsan] [target…]
set -euo pipefail
cd "$(dirname "$0")/.."
preset="${1:-release}"
shift || true

# Paths count from here, so that what one checkout or build directory has compiled serves the others (the wheel's, say).
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1

log="build/$preset.log"
mkdir -p build
echo "build: $preset (output in $log)"
start=$SECONDS
if ! { cmake --preset "$preset" && cmake --build "build/$preset" -- "$@"; } >"$log" 2>&1; then
  grep -E -A12 'error|FAILED|Error' "$log" | head -60 >&2 || tail -40 "$log" >&2
  echo "build: $preset failed; the whole output is in $log" >&2
  exit 1
fi
echo "build: $preset done in $((SECONDS - start)) s"
