#!/bin/bash
# npm run demo                 the tutorial on three hosts in network namespaces; leaves the machine as it was
# npm run demo -- --keep       the same, left running, with a word on how to look around
# npm run demo -- --down       removes what --keep (or KEEP_LAB=1) left
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $(id -u) -ne 0 ]]; then
  echo "demo: needs root, since hosts are network namespaces; run: sudo npm run demo" >&2
  exit 1
fi
bash netns-harness/prepare.sh run build
node dist/netns-harness/sweep.js
exec node dist/netns-harness/demo.js "$@"
