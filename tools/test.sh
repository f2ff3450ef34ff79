#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: the C++ tests, and on a release build those of the Python package too.
# Ends with both runners' own summaries.
# Usage: tools/test.sh [release|asan|tsan] [ctest options…]     with ctest options: the C++ tests that they choose, and no others
set -euo pipefail
cd "$(dirname "$0")/.."
preset="${1:-release}"
shift || true

tools/setup.sh
tools/build.sh "$preset"
# One more at a time than there are cores: most of them wait, for a disk, a process or a time limit.
status=0
log="build/$preset/ctest.log"
ctest --test-dir "build/$preset" --parallel "$(($(nproc) + 1))" --output-on-failure --no-tests=error "$@" | tee "$log" || status=$?
if [[ $preset == release && $# == 0 ]]; then
  tools/test_python.sh || status=$?
  sed -n '/tests passed/,$p' "$log"  # ctest's summary again, so that it is not looked for above
fi
exit "$status"
