#!/usr/bin/env bash
# The one door: ./launch.sh setup | demo | align | paper | train ... | test [...] | bench [...] | pages | docs
set -euo pipefail
CALLER=$PWD # which paths in arguments are relative to
cd "$(dirname "${BASH_SOURCE[0]}")"
ROOT=$PWD

VENV=.venv
PYTHON=$VENV/bin/python
MIN_TORCH=2.11   # what setup.cfg asks for: from here on,
END_TORCH=2.14   # and below that
CPU_TORCH=2.13.0 # what is installed where there is no GPU

usage() {
  cat <<TEXT
./launch.sh setup          Create .venv and install the dependencies. Does nothing if they are up to date.
./launch.sh demo           Align a tiny Llama on CLAIR pairs from scratch, in four to six minutes on two CPU cores.
./launch.sh demo --real    Align a real instruction model of 135 million parameters with apo_zero, in twenty minutes.
                           --all trains every objective, in an hour. --lora also trains an adapter (LoRA) and
                           compares it with training all parameters, in half an hour.
./launch.sh align RECIPE   Go from prompts to an aligned model and its report, following a YAML recipe. --dry-run prints
                           what it will take. examples/recipes/align-miniature.yaml takes five minutes on two cores.
./launch.sh paper [...]    Run the paper's experiment in miniature, in half an hour on two cores. --quick shortens it,
                           --seeds 3 takes three seeds; --config FILE runs a grid of your own (examples.grid) instead.
./launch.sh train ...      Run engine.train on every GPU of this machine, or in N processes with --nproc N. All other
                           arguments go to engine.train.
./launch.sh bench [...]    Measure the speed of training on this machine (engine.bench). Without arguments it takes a
                           tiny shape and about four minutes.
./launch.sh pages          Regenerate the generated pages of docs/ from the code and docs/records.
./launch.sh docs           Build the documentation as a site in runs/docs (open runs/docs/index.html). Installs Sphinx.
./launch.sh gpu-checks     Run the checks that need a GPU. --list names them; --seconds 230 limits the time, and
                           --done FILE lets the next call continue.
./launch.sh test [...]     Run the fast tests; --all adds the slow ones. Other arguments go to pytest (-k NAME).

Environment variables: PYTHON3 sets the Python interpreter (3.11 or later). TORCH sets the torch version to install, for
example TORCH=2.11.0; unset: the one that Python already has, else $CPU_TORCH without a GPU, or the newest from $MIN_TORCH to
below $END_TORCH with one.
TEXT
}

main() {
  local verb=${1:-help}
  shift || true
  case $verb in
    setup) setup "$@" ;;
    demo | align | paper | train | test | bench | pages | docs | gpu-checks) # no && here: it would let a failing line of setup pass
      setup
      "run_${verb//-/_}" "$@"
      ;;
    help | -h | --help) usage ;;
    *)
      echo "error: there is no command ./launch.sh $verb" >&2
      usage >&2
      return 2
      ;;
  esac
}

to_caller() { # where paths are as they were typed; the packages are found from anywhere
  if [[ $CALLER != "$ROOT" ]]; then
    cd "$CALLER"
    PYTHON=$ROOT/$PYTHON
  fi
}

say() { echo "+ $*" >&2; }
run() { say "$*" && "$@"; }
become() { # the last command: it takes this shell's place, so that a signal to ./launch.sh reaches it
  say "$*"
  exec "$@"
}

# --- setup ---------------------------------------------------------------------------------------------------------

setup() {
  if is_set_up; then return; fi
  local python
  python=$(find_python)
  exec 9>$VENV.lock # one at a time: each would remove what another has begun; it is let go when this shell ends
  if ! "$python" -c "$LOCK" NOW; then
    say "another setup is running in this folder; waiting for it to end"
    "$python" -c "$LOCK"
  fi
  if ! is_set_up; then install "$python"; fi
  exec 9>&-
}

LOCK='import fcntl, sys
try: fcntl.flock(9, fcntl.LOCK_EX | (fcntl.LOCK_NB if sys.argv[1:] else 0))
except BlockingIOError: sys.exit(1)'

is_set_up() { [[ -x $PYTHON && -f $VENV/.installed && $(<$VENV/.installed) == "$(wanted)" ]]; }

wanted() { cat setup.cfg pyproject.toml constraints.txt launch.sh - <<<"${TORCH:-}" | cksum; }

install() {
  local python=$1
  make_venv "$python"
  if ! has_torch "$PYTHON"; then install_torch; fi
  run "$PYTHON" -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
  wanted >$VENV/.installed
}

find_python() {
  local candidate
  for candidate in ${PYTHON3:-} python3 python3.12 python3.11 python3.13; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or later found; install one, or set PYTHON3 to its path" >&2
  return 2
}

make_venv() { # a machine's own torch (a CUDA image, say) is kept: the environment then sees the machine's packages
  local site=()
  if has_torch "$1"; then site=(--system-site-packages); fi
  if "$PYTHON" -m pip --version >/dev/null 2>&1; then return; fi # one that was interrupted is made anew
  if ! run "$1" -m venv --clear ${site[@]+"${site[@]}"} $VENV; then
    rm -rf $VENV
    echo "error: $1 cannot make a virtual environment; on Debian and Ubuntu install python3-venv" >&2
    return 2
  fi
}

has_torch() {
  "$1" - "$MIN_TORCH" "$END_TORCH" "${TORCH:-}" 2>/dev/null <<'PY'
import sys
import torch
lowest, end, asked = sys.argv[1:]
version = torch.__version__.split("+")[0]
number = lambda text: tuple(int(part) for part in text.split(".")[:2])
sys.exit(not number(lowest) <= number(version) < number(end) or asked not in ("", version))
PY
}

install_torch() {
  local asked=${TORCH:-}
  if nvidia-smi -L >/dev/null 2>&1; then
    say "torch with CUDA: several GB"
  else
    say "torch for the CPU: about 200 MB where pip can see a CPU build, several GB where it cannot"
    asked=${asked:-$CPU_TORCH}
  fi
  run "$PYTHON" -m pip install --quiet "torch>=$MIN_TORCH,<$END_TORCH${asked:+,==$asked}"
}

# --- verbs ---------------------------------------------------------------------------------------------------------

run_demo() {
  local real="" lora="" which=miniature.demo rest=() argument
  for argument in "$@"; do
    case $argument in
      --real) real=yes which=real.demo ;;
      --lora) lora=yes ;;
      *) rest+=("$argument") ;;
    esac
  done
  if [[ $lora ]]; then
    if [[ ! $real ]]; then
      echo "error: --lora trains an adapter of the real model; add --real" >&2
      return 2
    fi
    which=real.lora_demo
  fi
  become "$PYTHON" -m "examples.$which" ${rest[@]+"${rest[@]}"}
}

run_align() {
  to_caller
  become "$PYTHON" -m examples.align "$@"
}

run_paper() {
  local argument
  for argument in "$@"; do
    if [[ $argument == --config || $argument == --config=* ]]; then
      become "$PYTHON" -m examples.grid "$@"
    fi
  done
  become "$PYTHON" -m examples.miniature.paper "$@"
}

run_train() {
  to_caller
  local nproc="" rest=()
  while (($#)); do
    case $1 in
      --nproc) nproc=${2:-none} && shift $(($# > 1 ? 2 : 1)) ;;
      --nproc=*) nproc=${1#*=} && shift ;;
      *) rest+=("$1") && shift ;;
    esac
  done
  set -- ${rest[@]+"${rest[@]}"}
  if [[ -n $nproc && ! $nproc =~ ^[1-9][0-9]*$ ]]; then
    echo "error: --nproc needs a number, such as --nproc 2" >&2
    return 2
  fi
  nproc=${nproc:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
  if [[ $nproc == 1 || $# == 0 || " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    become "$PYTHON" -m engine.train "$@"
  fi
  # torchrun makes 1 of every exit code, and reports in its own words what a rank has said: so the rank that speaks
  # leaves the code in a file, the ranks leave with 0, and torchrun's reports go to another. It gives the ranks little
  # time after a signal: they get it by a file, and as much time as a save takes.
  local code=0 talk
  talk=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$talk'" EXIT
  touch "$talk/outcome"
  export RANK_OUTCOME_FILE=$talk/outcome RUN_STOP_FILE=$talk/stop
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(threads_per_rank "$nproc")}
  local command=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$nproc" -m engine.train "$@")
  say "${command[@]}"
  trap 'ask_to_stop 15' TERM
  trap 'ask_to_stop 2' INT
  trap 'ask_to_stop 1' HUP # no effect under nohup, which torchrun has to be told
  if "$PYTHON" -c 'import signal, sys; sys.exit(signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)'; then
    export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGQUIT    # torch up to 2.11
    export PET_SIGNALS_TO_HANDLE=$TORCHELASTIC_SIGNALS_TO_HANDLE    # since torchrun has a flag for it
  fi
  if (: >>/proc/$$/fd/1 && : >>/proc/$$/fd/2) 2>/dev/null; then
    # The ranks open the screen anew; where it is a file, all have to add to its end.
    exec >>/proc/$$/fd/1 2>>/proc/$$/fd/2
    export RANK_SCREEN=/proc/$$/fd/2
    "$PYTHON" -m system.session "${command[@]}" 2>>"$talk/torchrun" &
  else
    "$PYTHON" -m system.session "${command[@]}" &
  fi
  local running=$!
  while kill -0 "$running" 2>/dev/null; do # a signal that was heard ends a wait
    code=0
    wait "$running" || code=$?
  done
  if [[ -s $talk/outcome ]]; then
    code=$(<"$talk/outcome")
  elif ((code)) && [[ -f $talk/torchrun ]]; then # no rank was left to speak
    cat "$talk/torchrun" >&2
  fi
  return "$code"
}

ask_to_stop() {
  local said=
  if [[ -s $RUN_STOP_FILE ]]; then said=yes; fi
  echo "$1" >"$RUN_STOP_FILE"
  # a terminal that was closed takes no words
  if [[ -z $said ]]; then say "stopping when this step is done and its state is saved" || true; fi
}

run_bench() {
  to_caller
  if (($# == 0)); then set -- --shape tiny --data ultrafeedback; fi
  become "$PYTHON" -m engine.bench "$@"
}

run_gpu_checks() {
  to_caller
  export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
  become "$PYTHON" -P -m tests.gpu.checks "$@" # -P: where the caller stands there may be a tests/ too
}

threads_per_rank() { "$PYTHON" -c 'import os, sys; print(max(1, (os.cpu_count() or 1) // int(sys.argv[1])))' "$1"; }

run_pages() { become "$PYTHON" -m examples.pages "$@"; }

run_docs() {
  if ! "$PYTHON" -c 'import furo, myst_parser, sphinx' 2>/dev/null; then
    run "$PYTHON" -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
  fi
  run "$PYTHON" -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs runs/docs "$@"
  echo "runs/docs/index.html"
}

run_test() {
  local arguments=() argument
  bring_real_tokenizers
  if [[ $# == 0 || " $* " == *" --all "* ]]; then # many: a process per core, each with the one thread that it has
    arguments+=(--numprocesses auto --maxprocesses 4 --dist worksteal)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  fi
  for argument in "$@"; do
    if [[ $argument == --all ]]; then arguments+=(-m "slow or not slow"); else arguments+=("$argument"); fi
  done
  become "$PYTHON" -m pytest ${arguments[@]+"${arguments[@]}"}
}

bring_real_tokenizers() { # to compare ids with: for their files alone, hence without what these packages depend on
  local missing='import importlib.util as u, sys; sys.exit(all(map(u.find_spec, ("llama_models", "mistral_common"))))'
  if "$PYTHON" -c "$missing"; then
    run "$PYTHON" -m pip install --quiet --no-deps llama-models==0.3.0 mistral-common==1.13.1 ||
      say "the packages with real tokenizers cannot be installed; the tests that compare with them are skipped"
  fi
}

main "$@"
