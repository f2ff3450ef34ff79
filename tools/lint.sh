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
commands=build/$preset
if [[ $preset == release ]]; then
  commands=build/lint
  mkdir -p "$commands"
  mapfile -t files < <(python3 - <<'END'
import json, re
entries = [e for e in json.load(open("build/release/compile_commands.json")) if not e["file"].endswith(".pb.cc")]
for entry in entries:  # Clang can't read what GCC has precompiled
    entry["command"] = re.sub(r" -include \S*/cmake_pch\.hxx", "", entry["command"])
    print(entry["file"])
json.dump(entries, open("build/lint/compile_commands.json", "w"))
END
  )
fi
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 1 clang-tidy-14 -p "$commands" --quiet 2> >(grep -v 'warnings generated\|warning generated\|Suppressed\|Use -header-filter' >&2)
echo "lint: ${#files[@]} files are clean"
