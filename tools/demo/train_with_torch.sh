#!/usr/bin/env bash
# The training part of tools/demo.sh, which sources this, with PyTorch: client/python/examples/train_gpt.py under torchrun.
# torch and the package esker go into an environment of the demo's own, which is kept.

environment=$repository/build/demo/python
plot=$repository/build/demo/loss.png
[[ -n "${ESKER_DEMO_DIR:-}" ]] && plot=$work/loss.png

# Whether torch is there, or can be had from PyPI. Says why not. Then the package esker must be installable, too.
torch_can_be_had() {
  local log=$repository/build/demo/pip.log started=$SECONDS
  if [[ "${ESKER_DEMO_TORCH:-1}" == 0 ]]; then
    printf '\nThe training job is the one in C++: ESKER_DEMO_TORCH=0\n'
    return 1
  fi
  mkdir -p "$(dirname "$log")"
  printf '\nInstalling torch and the package esker into %s (minutes the first time)\n' "$environment"
  if ! install_torch >"$log" 2>&1; then
    printf 'The training job is the one in C++: torch could not be had from PyPI (%s says why)\n' "$log"
    return 1
  fi
  # As in tools/test_python.sh: the wheel is made of what the release build has compiled.
  CCACHE_BASEDIR=$repository CCACHE_NOHASHDIR=1 CXX=c++ pip install --force-reinstall --no-deps "$repository/client/python" >>"$log" 2>&1 ||
    fail "the package esker could not be installed: $log"
  printf 'Installed in %s s\n' $((SECONDS - started))
}

pip() { "$environment/bin/pip" --disable-pip-version-check "$@"; }
install_torch() {
  [[ -x $environment/bin/pip ]] || python3 -m venv "$environment" || return 1
  # The CPU build where it can be had: the one on PyPI brings gigabytes for GPUs.
  "$environment/bin/python" -c 'import torch; assert torch.__version__.startswith("2.13.0")' ||
    pip install --retries 0 torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu ||
    pip install torch==2.13.0 || return 1
  pip install numpy safetensors matplotlib || return 1
  pip download --no-deps --dest "$work/reach" scikit-build-core  # which the package is built with
}

# train_gpt RUN NAME RANKS: the job in the background; its output in $work/NAME.log.
train_gpt() {
  # Not shared, the store of torchrun lets a job start again: https://github.com/pytorch/pytorch/issues/135712
  OMP_NUM_THREADS=1 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "$environment/bin/torchrun" --standalone --nproc-per-node "$3" --max-restarts 3 \
    client/python/examples/train_gpt.py --server "$ESKER_SERVER" --job "$1" --text "$text" --layers 3 --width 192 --steps $steps \
    --save-every $save_every --final-state "$work/$2.state" --loss-log "$work/$2.loss" >>"$work/$2.log" 2>&1 &
  job_pid=$!
}
await_job() {
  wait "$job_pid" || { tail -5 "$work/$1.log" >&2; fail "the training job failed"; }
  job_pid=''
}

# The process of a rank.
rank_pid() {
  for pid in $(children "$job_pid"); do
    if tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "RANK=$1"; then echo "$pid"; fi
  done
}

# killed WHO PID…: with SIGKILL, and notes when.
killed() {
  kill -KILL "${@:2}"
  wait "${@:2}" 2>/dev/null || true  # for the server; the ranks are torchrun's children
  echo "$(date '+%F %T,%3N') $1" >>"$work/kills"
  told "SIGKILL to $1 (pid ${*:2}), $(wc -l <"$work/stormy.loss") steps done"
}
await_step() {
  until [[ $(wc -l <"$work/stormy.loss") -ge $1 ]]; do
    kill -0 "$job_pid" 2>/dev/null || fail "the job ended before step $1"
    sleep 0.05
  done
}

# Stops rank 2 in the middle of a save and sets victim_step, victim_pid, state. A save that was quicker is let go.
catch_a_save() {
  victim_step=''
  while read -r line; do
    [[ "$line" =~ step\ ([0-9]+): && ${BASH_REMATCH[1]} -ge 15 && $((BASH_REMATCH[1] % save_every)) -eq 0 ]] || continue
    victim_step=${BASH_REMATCH[1]} victim_pid=${victim_pid:-$(rank_pid 2)}
    kill -STOP "$victim_pid"
    for _ in $(seq 20); do  # until the other ranks are done
      state=$(esker --json ls stormy --all | json "' '.join(s['state'] + ', missing ranks ' + str(s['missing_ranks']) for s in it['saves'] if s['step'] == $victim_step)")
      [[ "$state" == *'[2]' ]] && return
      sleep 0.05
    done
    kill -CONT "$victim_pid"
  done < <(tail -n +1 -F --pid="$job_pid" "$work/stormy.log" 2>/dev/null)
  fail "the job ended before a save could be interrupted"
}

train_with_torch() {
  save_every=5
  say "A server, and a training run that nothing interrupts (torchrun, $ranks ranks, $steps steps, a save every $save_every)"
  start_server
  told "eskerd on $ESKER_SERVER: $(esker --json status | json 'it["disk_engine"]')"
  train_gpt calm calm $ranks
  await_job calm
  told "loss $(head -1 "$work/calm.loss" | cut -d' ' -f2 | cut -c1-6) -> $(tail -1 "$work/calm.loss" | cut -d' ' -f2 | cut -c1-6), $(esker --json ls calm | json 'f"""{len(it["checkpoints"])} checkpoints of {it["checkpoints"][-1]["raw_bytes"] / 1e6:.0f} MB"""')"

  say "The same run again; in the middle of a save a rank is killed, then the server"
  train_gpt stormy stormy $ranks
  catch_a_save
  told "step $victim_step: $state"
  kill -STOP "$job_pid"  # torchrun, which would start the ranks again
  killed "rank 2 and eskerd" "$victim_pid" "$server_pid"

  say "The server starts again: the half-made checkpoint is not there"
  start_server
  listed=$(esker --json ls stormy | json '[c["step"] for c in it["checkpoints"]]')
  told "checkpoints of the run: $listed"
  [[ "$listed" != *"$victim_step"* ]] || fail "step $victim_step is listed, but was never whole"
  held "half-made checkpoint" "step $victim_step was cut off by two kills and is not listed"

  say "torchrun starts the ranks again. Later all of them are killed, and later the server alone"
  kill -CONT "$job_pid"
  await_step $((steps * 6 / 10 + save_every - 2))  # just before a save, so that there is something to lose
  killed "all ranks" $(children "$job_pid")
  await_step $((steps * 8 / 10))
  killed "eskerd" "$server_pid"
  start_server
  await_job stormy
  sed -n 's/.*rank 0: attempt/       attempt/p' "$work/stormy.log"
  grep -q "attempt 2: resumed from step $((victim_step - save_every))$" "$work/stormy.log" || fail "expected to resume from step $((victim_step - save_every))"
  cmp "$work/calm.loss" "$work/stormy.loss" || fail "the loss curves differ"
  equal=$(tools/compare_safetensors.py "$work/calm.state" "$work/stormy.state") || fail "$equal"
  held "resume" "all $steps losses and the final state are those of the run without kills: $equal"

  say "What 4 ranks saved, 2 and 3 ranks load"
  esker restore stormy@latest --to "$work/stored.safetensors" >/dev/null
  for fewer in 2 3; do
    train_gpt stormy "on-$fewer" $fewer  # it has done all its steps: it loads, and trains no more
    await_job "on-$fewer"
    equal=$(tools/compare_safetensors.py --subset "$work/on-$fewer.state" "$work/stored.safetensors") || fail "$equal"
    held "on $fewer ranks" "loaded is what was saved: $equal"
  done

  "$environment/bin/python" tools/plot_loss.py "$work/calm.log" "$work/stormy.log" "$work/kills" "$plot"
  held "loss" "drawn across the kills in $plot"
}
