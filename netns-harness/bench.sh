#!/bin/bash
# npm run bench -- overlay|userspace|gossip|tables|mesh|dns [--rounds N] [--seconds S] [--json FILE|-]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash netns-harness/prepare.sh run build bench >&2
if [[ $(id -u) -eq 0 ]]; then node dist/netns-harness/sweep.js >&2; fi
exec node dist/netns-harness/bench/main.js "$@"
