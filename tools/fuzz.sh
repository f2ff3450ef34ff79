#!/usr/bin/env bash
# Builds the fuzzers with Clang and runs each for some seconds, from its corpus in tests/fuzz/corpus, as many at a time as there are
# cores. Ends with an error after a crash, hang or leak, and names the input that made it.
# Usage: tools/fuzz.sh [seconds=10] [target…]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds="${1:-10}"
shift || true
targets=("$@")
(( ${#targets[@]} > 0 )) || mapfile -t targets < <(ls tests/fuzz/corpus)

# fuzz SECONDS TARGET
fuzz() {
  # What is found new goes to the build directory; the corpus in the repository grows by hand.
  local work=build/fuzz/corpus/$2 log=build/fuzz/$2.log
  mkdir -p "$work"
  if ! "build/fuzz/bin/fuzz_$2" -max_total_time="$1" -timeout=10 -rss_limit_mb=2048 -max_len=4096 \
    -artifact_prefix="build/fuzz/$2-" "$work" "tests/fuzz/corpus/$2" >"$log" 2>&1; then
    tail -30 "$log" >&2
    echo "fuzz: $2 failed; the input is named above, the whole output is in $log" >&2
    return 1
  fi
  echo "fuzz: $2: $(grep -o 'Done .*' "$log")"
}
export -f fuzz

tools/build.sh fuzz fuzzers
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz "$@"' - "$seconds" {}
