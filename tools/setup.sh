#!/usr/bin/env bash
# Installs what Esker needs to build and to be tested, from Debian 12's packages. Can be run again: does nothing if all is there.
# Usage: tools/setup.sh [--dev]     --dev: also what .ci/run needs (clang tools)
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache mold pkg-config git ca-certificates
  liburing-dev libzstd-dev libxxhash-dev libisal-dev
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libabsl-dev
  librocksdb-dev libsnappy-dev libgflags-dev
  libcli11-dev libtomlplusplus-dev libspdlog-dev libfmt-dev nlohmann-json3-dev
  libgtest-dev libgmock-dev
  python3 python3-dev python3-venv curl
)
if [[ "${1:-}" == "--dev" ]]; then
  packages+=(clang-14 clang-format-14 clang-tidy-14 libclang-rt-14-dev)
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ "$state" == installed ]] || missing+=("$package")
done
if (( ${#missing[@]} == 0 )); then
  echo "setup: everything is installed"
  exit 0
fi
if (( EUID != 0 )); then
  echo "setup: run as root, or install by hand: ${missing[*]}" >&2
  exit 1
fi
echo "setup: installing ${#missing[@]} packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -20 "$log" >&2
  echo "setup: apt-get failed; its output is in $log" >&2
  exit 1
fi
rm -f "$log"
echo "setup: done"
