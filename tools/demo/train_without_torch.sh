#!/usr/bin/env bash
# The training part of tools/demo.sh, which sources this, with the job in C++ (client/example/).

# train RUN NAME: the job in the background; its output in $work/NAME.log.
train() {
  esker-train-text --server "$ESKER_SERVER" --run "$1" --text "$text" --ranks $ranks --hidden 2048 --steps $steps \
    --save-every $save_every --final-state "$work/$2.state" --loss-log "$work/$2.loss" >"$work/$2.log" 2>&1 &
  job_pid=$!
}
train_to_end() {
  train "$1" "$2"
  wait "$job_pid" || { tail -5 "$work/$2.log" >&2; fail "the training job failed"; }
  job_pid=''
}

train_without_torch() {
  say "A server, and a training run that nothing interrupts ($ranks ranks, $steps steps, a save every $save_every)"
  start_server
  told "eskerd on $ESKER_SERVER: $(esker --json status | json 'it["disk_engine"]')"
  train_to_end calm calm
  told "$(grep -h 'committed' "$work/calm.log" | tail -1 | sed 's/^train: //')"
  told "loss $(head -1 "$work/calm.loss" | cut -d' ' -f2) -> $(tail -1 "$work/calm.loss" | cut -d' ' -f2), $(esker --json ls calm | json 'f"""{len(it["checkpoints"])} checkpoints of {it["checkpoints"][-1]["raw_bytes"] / 1e6:.0f} MB"""')"

  say "The same run again; in the middle of a save a rank is killed, then the server"
  train stormy stormy-1
  victim_step=''
  while read -r line; do
    if [[ "$line" =~ pids\ (.*) ]]; then
      read -r -a pids <<<"${BASH_REMATCH[1]}"
    elif [[ "$line" =~ step\ ([0-9]+):.*saving && ${BASH_REMATCH[1]} -ge 30 ]]; then
      # Held still, so that the save can't end while we look at it; a save that was quicker is let go.
      victim_step=${BASH_REMATCH[1]}
      kill -STOP "${pids[2]}"
      for _ in $(seq 20); do  # until the other ranks are done
        state=$(esker --json ls stormy --all | json "' '.join(s['state'] + ', missing ranks ' + str(s['missing_ranks']) for s in it['saves'] if s['step'] == $victim_step)")
        [[ "$state" == *'[2]' || "$state" != *saving* ]] && break
        sleep 0.05
      done
      [[ "$state" == *saving* ]] && break
      kill -CONT "${pids[2]}"
      victim_step=''
    fi
  done < <(tail -n +1 -F --pid="$job_pid" "$work/stormy-1.log" 2>/dev/null)
  [[ -n "$victim_step" ]] || fail "the job ended before a save could be interrupted"
  told "step $victim_step: $state"
  kill -KILL "${pids[2]}"
  kill -KILL "$server_pid"
  wait "$job_pid" 2>/dev/null && fail "the job did not notice that a rank died"
  wait "$server_pid" 2>/dev/null || true
  job_pid=''
  told "SIGKILL to rank 2 (pid ${pids[2]}) and to eskerd (pid $server_pid)"

  say "The server starts again: the half-made checkpoint is not there"
  start_server
  listed=$(esker --json ls stormy | json '[c["step"] for c in it["checkpoints"]]')
  told "checkpoints of the run: $listed"
  [[ "$listed" != *"$victim_step"* ]] || fail "step $victim_step is listed, but was never whole"
  held "half-made checkpoint" "step $victim_step was cut off by two kills and is not listed"

  say "The job starts again, as a new attempt"
  train_to_end stormy stormy-2
  resumed=$(grep -m1 -o 'attempt.*' "$work/stormy-2.log")
  told "$resumed"
  [[ "$resumed" == *"resumed from step $((victim_step - save_every)) "* ]] || fail "expected to resume from step $((victim_step - save_every))"
  cmp "$work/calm.state" "$work/stormy-2.state" || fail "the final states differ"
  held "resume" "$(bytes "$(stat -c %s "$work/calm.state")") of final state, bit for bit those of the run without kills"
}
