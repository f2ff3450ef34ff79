#!/usr/bin/env bash
# clang-tidy with Clang's thread-safety analysis over the project's sources; every finding is an error.
# Usage: tools/lint.sh [file…]     needs a configured build/release
set -euo pipefail
cd "$(dirname "$0")/.."
[[ -f build/release/compile_commands.json ]] || tools/build.sh release
if (( $# > 0 )); then
  files=("$@")
else
  mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.cc')
fi
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy-14 -p build/release --quiet 2> >(grep -v 'warnings generated\|warning generated\|Suppressed\|Use -header-filter' >&2)
echo "lint: ${#files[@]} files are clean"
