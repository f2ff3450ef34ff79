#!/usr/bin/env bash
# Builds the fuzzers with Clang and runs each for some seconds, from its corpus in tests/fuzz/corpus. Ends with an error at the
# first crash, hang or leak, and names the input that made it.
# Usage: tools/fuzz.sh [seconds=10] [target…]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds="${1:-10}"
shift || true
targets=("$@")
(( ${#targets[@]} > 0 )) || mapfile -t targets < <(ls tests/fuzz/corpus)

tools/build.sh fuzz fuzzers
for target in "${targets[@]}"; do
  # What is found new goes to the build directory; the corpus in the repository grows by hand.
  work=build/fuzz/corpus/$target
  mkdir -p "$work"
  log=build/fuzz/$target.log
  if ! "build/fuzz/bin/fuzz_$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 \
    -artifact_prefix="build/fuzz/$target-" "$work" "tests/fuzz/corpus/$target" >"$log" 2>&1; then
    tail -30 "$log" >&2
    echo "fuzz: $target failed; the input is named above, the whole output is in $log" >&2
    exit 1
  fi
  echo "fuzz: $target: $(grep -o 'Done .*' "$log")"
done
