#!/usr/bin/env bash
# clang-tidy with Clang's thread-safety analysis over the project's sources; every finding is an error. Without names all of them, in
# the batches in which the release build compiles them: headers are read once for each batch. What only the tsan and fuzz builds compile
# is left out, and the Python module, whose pybind11 comes from PyPI.
# Usage: tools/lint.sh [file…]
set -euo pipefail
cd "$(dirname "$0")/.."

if (( $# > 0 )); then
  preset=dev
  files=("$@")
else
  preset=release
fi
tools/build.sh "$preset" format/proto/service.pb.h
if [[ $preset == release ]]; then
  mapfile -t files < <(python3 - <<'END'
import json
for entry in json.load(open("build/release/compile_commands.json")):
    if not entry["file"].endswith(".pb.cc"):
        print(entry["file"])
END
  )
fi
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 1 clang-tidy-14 -p "build/$preset" --quiet 2> >(grep -v 'warnings generated\|warning generated\|Suppressed\|Use -header-filter' >&2)
echo "lint: ${#files[@]} files are clean"
