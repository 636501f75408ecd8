# shellcheck shell=bash
# A free port for a process on this machine. Sourced, never run.

# Prints a port nobody uses, below the range the kernel takes for outgoing connections.
free_port() {
  local port hex
  while :; do
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    hex=$(printf ':%04X ' "$port")
    if ! grep -qsF -- "$hex" /proc/net/tcp /proc/net/tcp6; then
      echo "$port"
      return
    fi
  done
}
