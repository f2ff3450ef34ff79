#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test. Ends with the test runner's own summary.
# Usage: tools/test.sh [release|asan|tsan] [ctest options…]
set -euo pipefail
cd "$(dirname "$0")/.."
preset="${1:-release}"
shift || true

tools/setup.sh
tools/build.sh "$preset"
# One test at a time where they measure themselves against two cores; the summary names what failed.
ctest --test-dir "build/$preset" --output-on-failure --no-tests=error "$@"
