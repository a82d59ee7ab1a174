# Shared by the launch scripts: one-line errors, required arguments, and commands that --dry-run
# prints in place of running. Sourced, not run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN=false

fail() {
  printf '%s: %s\n' "${LAUNCHER:-${0##*/}}" "$1" >&2
  exit 2
}

# value OPTION REST...: fail unless something follows OPTION.
value() {
  (($# >= 2)) || fail "$1 needs a value; see --help"
}

# Print a command so that it can be pasted into a shell.
show() {
  local line
  line="$(printf '%q ' "$@")"
  printf '%s\n' "${line% }"
}

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

# A run directory is a folder: it is locked, and finished stages are renamed into place in it.
local_folder() {
  [[ "$1" != *://* ]] || fail "RUN_DIR must be a folder, not '$1'; see docs/launch.md for buckets"
}
