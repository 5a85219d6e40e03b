#!/bin/bash
# npm run demo                 the tutorial on three hosts in network namespaces; leaves the machine as it was
# npm run demo -- dockercoins  a whole application instead: five parts, a page with a chart, a node that dies
# npm run demo -- --keep       the same, left running, with a word on how to look around
# npm run demo -- --down       removes what --keep (or KEEP_LAB=1) left
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $(id -u) -ne 0 ]]; then
  echo "demo: needs root, since hosts are network namespaces; run: sudo npm run demo" >&2
  exit 1
fi
purposes=(run build)
for word in "$@"; do [[ $word != dockercoins ]] || purposes+=(demo); done
bash netns-harness/prepare.sh "${purposes[@]}"
node dist/netns-harness/sweep.js
exec node dist/netns-harness/demo.js "$@"
