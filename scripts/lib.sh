# shellcheck shell=bash
# Sourced by the other scripts: where things are, who runs the servers, how a step speaks.
set -Eeuo pipefail
umask 022

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
export PGRX_VERSION=0.18.1
ALL_VERSIONS=(15 16 17 18)

# PostgreSQL refuses to run as root, so root hands the servers to an ordinary user; the Debian
# package brings `postgres`. Anybody else runs them as himself.
SERVER_USER=$(id -un)
[ "$SERVER_USER" != root ] || SERVER_USER=${AUDIT_TEST_USER:-postgres}
export SERVER_USER

# Everything that is made goes to build/ in the checkout. Where that is closed to other users (root
# working below /root, say), the server's user could not start a program there: then, and only
# then, it is a folder of root's in /var/tmp, named after the checkout.
default_build() {
  if [ "$(id -u)" = 0 ] && ! setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$ROOT"; then
    echo "/var/tmp/audit_ext-$(printf %s "$ROOT" | sha256sum | cut -c1-8)"
  else
    echo "$ROOT/build"
  fi
}
BUILD=${AUDIT_BUILD:-$(default_build)}
export AUDIT_BUILD=$BUILD
mkdir -p "$BUILD/log"
if [ ! -O "$BUILD" ]; then # /var/tmp is everybody's: take no folder that somebody else has put there
  echo "$BUILD belongs to somebody else; set AUDIT_BUILD to a folder of your own" >&2
  exit 1
fi

# pgrx keeps its settings in a folder of the project's own, never in the user's ~/.pgrx. The link flag
# is what cargo-pgrx adds in a configuration of its own; given here to all of cargo's calls, so that
# clippy and the build agree, and what one has compiled serves the other.
export PGRX_HOME=$BUILD/pgrx
export RUSTFLAGS=${RUSTFLAGS--C link-arg=-Wl,--no-gc-sections}
export PATH=$BUILD/tools/bin:$PATH
export CARGO_TERM_COLOR=never LC_ALL=C.UTF-8

# rustflags VERSION: the flags that the extension is compiled with: with the profile of scripts/profile, where there is one for
# this compiler (another one's names do not match). AUDIT_PROFILE=none leaves it out.
rustflags() {
  local profile=$ROOT/profiles/$1.profdata
  case ${AUDIT_PROFILE-use} in
    use)
      if [ -e "$profile" ] && [ "$(rustc --version)" = "$(cat "$ROOT/profiles/rustc")" ] && [[ $ROOT != *[[:space:]]* ]]; then
        echo "$RUSTFLAGS -C profile-use=$profile -C llvm-args=-no-pgo-warn-mismatch"
        return
      fi
      ;;
    record) echo "$RUSTFLAGS -C profile-generate" && return ;;
  esac
  echo "$RUSTFLAGS"
}

say() { printf '== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# quietly NAME COMMAND...: output goes to a log, which is shown if the command fails. Bash does not
# stop at a failing line inside a function that is called this way: COMMAND is a program, or a
# function whose steps are joined by &&.
quietly() {
  local log=$BUILD/log/$1.log status=0
  shift
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if [ "$status" != 0 ]; then
    tail -n 60 "$log" >&2
    echo "error: $* failed with status $status; all of its output: $log" >&2
  fi
  return "$status"
}

# llvm_tools: a folder with the tools of the LLVM that rustc has in it: rustup's, if installed, else Debian unstable's, unpacked
# as in scripts/pg-versions.
llvm_tools() {
  local major folder
  folder=$(dirname -- "$(rustc --print target-libdir)")/bin
  if [ ! -x "$folder/llvm-profdata" ]; then
    major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    folder=$BUILD/llvm-$major/usr/lib/llvm-$major/bin
    if [ ! -e "$BUILD/llvm-$major/.made" ]; then
      say "getting LLVM $major" >&2
      AUDIT_PATCH=usr/lib/llvm-$major/bin quietly llvm \
        "$ROOT/scripts/unpack-debs" sid "$BUILD/llvm-$major" "llvm-$major" libc-bin
      touch "$BUILD/llvm-$major/.made"
    fi
  fi
  "$folder/llvm-profdata" --version >/dev/null
  echo "$folder"
}

# retry COMMAND...: for what talks to a network.
retry() {
  local attempt
  for attempt in 1 2 3 4; do
    "$@" && return 0
    echo "attempt $attempt failed: $*" >&2
    sleep $((attempt * 5))
  done
  return 1
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

pg_config_of() { # VERSION
  echo "$BUILD/pg/$1/bin/pg_config"
}

require_version() {
  case " ${ALL_VERSIONS[*]} " in
    *" $1 "*) ;;
    *) die "PostgreSQL $1 is not among ${ALL_VERSIONS[*]}" ;;
  esac
}
