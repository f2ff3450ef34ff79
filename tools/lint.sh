#!/usr/bin/env bash
# clang-tidy with Clang's thread-safety analysis over the project's sources; every finding is an error.
# Usage: tools/lint.sh [file…]
set -euo pipefail
cd "$(dirname "$0")/.."

# File by file, and with the generated headers in place. What only the tsan and fuzz builds compile is left
# out, and the Python module, whose pybind11 comes from PyPI.
tools/build.sh dev format/proto/service.pb.h
if (( $# > 0 )); then
  files=("$@")
else
  mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.cc' ':!tests/testing/tsan_grpc.cc' ':!tests/fuzz/fuzz_main.cc' ':!client/python')
fi
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy-14 -p build/dev --quiet 2> >(grep -v 'warnings generated\|warning generated\|Suppressed\|Use -header-filter' >&2)
echo "lint: ${#files[@]} files are clean"
