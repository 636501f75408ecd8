# shellcheck shell=bash
# Installs the tools a script needs, and only those that are missing. Sourced, never run.
#
# What lives here: Debian packages by the command they bring, and Kafka's jars. What does not: Rust
# itself (rustup brings it) and anything that starts a process.

PULSESTREAM_CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/pulsestream"
KAFKA_VERSION=4.1.1
KAFKA_LIBS="$PULSESTREAM_CACHE/kafka-$KAFKA_VERSION"
export KAFKA_LIBS

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$*"
  exit 1
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "needs root to install packages, and there is no sudo: $*"
  fi
}

# The folder of PostgreSQL's server programs, which Debian keeps out of PATH; empty when there is none.
postgres_bin() {
  local found
  found=$(find /usr/lib/postgresql -maxdepth 3 -name initdb -path '*/bin/*' 2>/dev/null | sort -V | tail -n 1)
  [ -n "$found" ] || found=$(command -v initdb || true)
  [ -z "$found" ] || dirname "$found"
}

has_command() {
  case $1 in
    initdb) [ -n "$(postgres_bin)" ] ;;
    venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

package_of() {
  case $1 in
    java) echo openjdk-17-jre-headless ;;
    mvn) echo maven ;;
    initdb | psql) echo postgresql ;;
    redis-cli) echo redis-tools ;;
    promtool) echo prometheus ;;
    venv) echo python3-venv ;;
    kubectl) echo kubernetes-client ;;
    cc) echo gcc libc6-dev ;;
    chromium) echo chromium fonts-dejavu-core ;; # without a font it shows no letter
    *) echo "$1" ;; # the package is called as its command is
  esac
}

# Usage: install_commands COMMAND... Installs the Debian package of every command that is not there.
install_commands() {
  local command missing=()
  for command in "$@"; do
    if ! has_command "$command"; then
      # shellcheck disable=SC2207 # package names hold no blanks
      missing+=($(package_of "$command"))
    fi
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "please install: ${missing[*]} (only Debian's apt-get is automated)"
  say "installing ${missing[*]}"
  apt_install "${missing[@]}"
}

# Runs in a subshell, so that its trap is its own.
apt_install() (
  # Debian starts a server as soon as it is installed. We want the programs, not the services.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    trap 'as_root rm -f "$policy"' EXIT
    as_root chmod 755 "$policy"
  fi
  log=$(mktemp)
  if ! as_root apt-get -o DPkg::Lock::Timeout=300 -q update >"$log" 2>&1 ||
    ! as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qy install \
      --no-install-recommends "$@" >>"$log" 2>&1; then
    tail -n 30 "$log" >&2
    rm -f "$log"
    die "apt-get could not install $*"
  fi
  rm -f "$log"
)

# Fetches Kafka's jars once per machine. The folder appears whole or not at all.
install_kafka() {
  [ ! -d "$KAFKA_LIBS" ] || return 0
  install_commands mvn
  say "fetching Kafka $KAFKA_VERSION"
  mkdir -p "$PULSESTREAM_CACHE"
  local fresh
  fresh=$(mktemp -d "$KAFKA_LIBS.XXXXXX")
  cp "$(dirname "${BASH_SOURCE[0]}")/../kafka/pom.xml" "$fresh/pom.xml"
  if ! mvn -B -f "$fresh/pom.xml" dependency:copy-dependencies -DoutputDirectory="$fresh/libs" \
    >"$fresh/maven.log" 2>&1; then
    tail -n 30 "$fresh/maven.log" >&2
    rm -rf "$fresh"
    die "Maven could not fetch Kafka"
  fi
  chmod 755 "$fresh/libs"
  # Whoever was faster wins; the jars are the same.
  mv -T "$fresh/libs" "$KAFKA_LIBS" 2>/dev/null || [ -d "$KAFKA_LIBS" ]
  rm -rf "$fresh"
}
