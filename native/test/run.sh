#!/bin/sh
# Builds and runs the engine's native tests under the address and undefined-behavior sanitizers.
#   run.sh            the tests, then a short fuzzing run over the corpus
#   run.sh tests      the tests only; SEED=n repeats a failure
#   run.sh fuzz N     N seconds of fuzzing; new inputs go to build/test/findings, crashes stay there too
# With clang, the same entry builds as a libFuzzer target: clang++ -fsanitize=fuzzer,address,undefined … fuzz.cc
set -eu
here=$(cd "$(dirname "$0")" && pwd)
native=$(dirname "$here")
out=$native/build/test
mkdir -p "$out"
flags="-std=c++20 -g -O1 -fno-exceptions -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all
  -fno-omit-frame-pointer -I$native/src -I$here -pthread"
pure="checksum coalesce neighbor parse segment table tunnel_frame"

objects() { # objects SUFFIX EXTRA-FLAGS: compiles the engine's pure half, once per kind
  for name in $pure; do
    object=$out/$name.$1.o
    if [ -n "$(find "$native/src/engine" -newer "$object" 2>/dev/null || echo new)" ]; then
      # shellcheck disable=SC2086
      g++ $flags $2 -c -o "$object" "$native/src/engine/$name.cc"
    fi
    echo "$object"
  done
}

run_tests() {
  # shellcheck disable=SC2046,SC2086
  g++ $flags -o "$out/engine_test" "$here/engine_test.cc" $(objects tested "")
  "$out/engine_test"
}

run_fuzz() {
  # The driver itself is not instrumented: only branches of the engine count as found.
  # shellcheck disable=SC2046,SC2086
  g++ $flags -o "$out/fuzz" "$here/fuzz.cc" "$here/fuzz_driver.cc" $(objects traced -fsanitize-coverage=trace-pc)
  "$out/fuzz" "$1" "$here/corpus" "$out/findings"
}

case ${1:-all} in
  tests) run_tests ;;
  fuzz) run_fuzz "${2:-60}" ;;
  all)
    run_tests
    run_fuzz "${FUZZ_SECONDS:-5}"
    ;;
esac
