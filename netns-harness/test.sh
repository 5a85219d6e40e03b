#!/bin/bash
# npm test: prepares the machine and the tree, then runs every test.
#
#   npm test                                   everything
#   npm test -- test/swim attach-ping          only files whose path contains one of the words
#   npm test -- --pure | --scenarios           one half
#   npm test -- --matrix                       every scenario with every pair of data planes
#   npm test -- --reporter=spec|tap|dot        default: spec on a terminal, tap elsewhere, as node does
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash netns-harness/prepare.sh run build test
if [[ $(id -u) -eq 0 ]]; then node dist/netns-harness/sweep.js; fi
exec node dist/netns-harness/run-tests.js "$@"
