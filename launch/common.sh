# Shared by the launch scripts: one-line errors, options, required arguments, and commands that --dry-run
# prints in place of running. Sourced, not run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN=false

fail() {
  printf '%s: %s\n' "${LAUNCHER:-${0##*/}}" "$1" >&2
  exit 2
}

# options VALUED FLAGS ARGUMENT...: read a command line. --NAME of the words VALUED puts what follows it into the
# variable NAME, and one of the words FLAGS makes its variable true; --dry-run and --help all scripts have. What is
# no option goes into `positional`, and what comes after -- into `rest`.
options() {
  local _valued=" $1 " _flags=" $2 " _name
  shift 2
  positional=() rest=()
  while (($#)); do
    _name="${1#--}"
    case "$1" in
      --dry-run) DRY_RUN=true ;;
      --help | -h) usage; exit 0 ;;
      --) shift; rest=("$@"); return ;;
      --*' '*) fail "unknown option '$1'; see --help" ;;
      --*)
        if [[ "$_flags" == *" $_name "* ]]; then
          printf -v "$_name" true
        elif [[ "$_valued" == *" $_name "* ]]; then
          (($# >= 2)) || fail "$1 needs a value; see --help"
          printf -v "$_name" '%s' "$2"
          shift
        else
          fail "unknown option '$1'; see --help"
        fi ;;
      -*) fail "unknown option '$1'; see --help" ;;
      *) positional+=("$1") ;;
    esac
    shift
  done
}

# Words as a shell reads them.
quoted() {
  local line
  line="$(printf '%q ' "$@")"
  printf '%s' "${line% }"
}

# Print a command so that it can be pasted into a shell.
show() { printf '%s\n' "$(quoted "$@")"; }

# Run a command, or only show it.
run() {
  if "$DRY_RUN"; then show "$@"; else "$@"; fi
}

# The Python of `make setup` if it was made, else the one on the PATH.
default_python() {
  if [[ -x "$ROOT/.venv/bin/python" ]]; then printf '%s' "$ROOT/.venv/bin/python"; else printf 'python3'; fi
}

whole_number() {
  [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 must be a whole number, not '$2'"
}

# config_and_run_dir EXAMPLE_OF_RUN_DIR ARGUMENT...: set `config` and `run_dir` from what are no options.
config_and_run_dir() {
  (($# >= 2)) || fail "CONFIG is missing, for example configs/recipes/tiny.gin"
  (($# >= 3)) || fail "RUN_DIR is missing, for example $1"
  (($# == 3)) || fail "unexpected '$4'; arguments of aya run come after --"
  # shellcheck disable=SC2034 # the scripts read them
  config="$2" run_dir="${3%/}"
}

# A run directory is a folder: it is locked, and finished stages are renamed into place in it.
local_folder() {
  [[ "$1" != *://* ]] || fail "RUN_DIR must be a folder, not '$1'; see docs/launch.md for buckets"
}

# Whether the same command goes on after it ended with a status: it was preempted and saved (75), was
# stuck (76), lost another process (77) or was killed by a signal, an interrupt (130) excepted. All
# other errors are told by the program, and would come again.
goes_on() { ((($1 >= 75 && $1 <= 77) || ($1 > 128 && $1 != 130))); }

# await CHILD: until it is gone; its own status is then in `status`. A signal to us ends `wait` early,
# maybe just as the child ends; asked again, the shell still knows how that did.
await() {
  while :; do
    wait "$1" || true
    kill -0 "$1" 2>/dev/null || break
  done
  # shellcheck disable=SC2034 # the scripts read it
  if wait "$1"; then status=0; else status=$?; fi
}

# XLA flags for the same bits in every run on the same GPUs, and a program that fails without a GPU.
# shellcheck disable=SC2034 # the scripts for GPUs read them
DETERMINISTIC='--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0' FIND_GPU='import jax; jax.devices()'

no_gpu() {
  fail "JAX finds no GPU with $1; run: $1 -m pip install -e '.[cuda]', and look at nvidia-smi"
}
