#!/bin/bash
# Makes a fresh clone runnable and a changed one current: Debian packages, npm packages, addon, dist/.
# Does only what is out of date.
#
#   prepare.sh [purpose…]      purposes as in bootstrap.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash netns-harness/bootstrap.sh "$@"

addon=native/build/Release/netagent.node
if ! node netns-harness/installed.mjs; then
  if [[ -L node_modules ]]; then
    echo "prepare: node_modules is a link and does not match package-lock.json; not touching it" >&2
  else
    # Headers beside node spare dependencies with native code a download, as native/build.mjs does for ours.
    prefix=$(dirname "$(dirname "$(node -p process.execPath)")")
    if [[ -e $prefix/include/node/node_api.h ]]; then export npm_config_nodedir=$prefix; fi
    echo "prepare: npm ci"
    npm ci --loglevel=error # builds the addon, too
  fi
fi

if [[ ! -e $addon || -n $(find native -path native/build -prune -o -type f -newer $addon -print -quit) ]]; then
  echo "prepare: building the addon"
  node native/build.mjs
fi

# The stamp is made before the compiler starts: a file saved meanwhile is newer than it.
stamp=dist/.built
if [[ ! -e $stamp || -n $(find src test netns-harness tsconfig.json package.json -newer $stamp -print -quit) ]]; then
  rm -rf dist && mkdir dist && touch dist/.building
  node_modules/.bin/tsc --project tsconfig.json
  mv dist/.building $stamp
fi
