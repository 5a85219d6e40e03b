#!/bin/bash
# Installs the Debian packages this project needs and this machine lacks. Silent when nothing is missing.
#
#   bootstrap.sh [run] [build] [test] [bench] [demo]     which purposes to serve; default: all of them
#
# Installed daemons (docker, serf) are neither started nor enabled: the tests start their own, in namespaces.
set -euo pipefail

NODE_MAJOR=20

# program | package | purposes | what it is for
TOOLS="
ip|iproute2|run|namespaces and links of the lab
nft|nftables|run|published ports and virtual IPs
nsenter|util-linux|run|entering namespaces
sysctl|procps|run|kernel settings of lab hosts
ping|iputils-ping|run|reaching another host
curl|curl|run|the demo's HTTP client
tcpdump|tcpdump|run|captures of the underlay
conntrack|conntrack|run|looking at connections
iptables|iptables|run|letting published ports through Docker's FORWARD policy
make|make|build|the native addon
g++|g++|build|the native addon and the bench programs
python3|python3|build|node-gyp
serf|serf|test|a real memberlist peer
dockerd|docker.io|test|a real NetworkDB peer
busybox|busybox-static|test|the image of Docker's containers
dig|bind9-dnsutils|test|asking our DNS server
ethtool|ethtool|test|offload settings of links
socat|socat|test|plain TCP and UDP peers
musl-gcc|musl-tools|test|a client with musl's resolver
chromium|chromium|test|looking at the dockercoins page
redis-server|redis-server|test,demo|where dockercoins keeps its coins
dnsmasq|dnsmasq-base|bench|a DNS server to compare ours with
iperf3|iperf3|bench|throughput
wrk|wrk|bench|requests over kept connections
haproxy|haproxy|bench|a proxy to compare the mesh with
nebula|nebula|bench|a userspace overlay to compare the engine with
tincd|tinc|bench|another one
ovs-vswitchd|openvswitch-switch|bench|VXLAN in userspace to compare the engine with"

main() {
  check_node
  local asked=(${*:-run build test bench demo}) missing=() program package purposes purpose why
  while IFS='|' read -r program package purposes why; do
    for purpose in "${asked[@]}"; do
      [[ -n $program && ,$purposes, == *",$purpose,"* ]] || continue
      has "$program" || missing+=("$package|$program: $why")
      break
    done
  done <<<"$TOOLS"
  [[ ${#missing[@]} -eq 0 ]] && return

  echo "bootstrap: installing Debian packages that are missing:"
  printf '  %s\n' "${missing[@]}" | column_of
  [[ $(id -u) -eq 0 ]] || fail "installing packages needs root; run: sudo npm run bootstrap"
  has apt-get || fail "this is not Debian (no apt-get): install the programs named above, then run again"
  install_packages "${missing[@]%%|*}"
  echo "bootstrap: done"
}

check_node() {
  has node || fail "node is not installed: netagent needs Node $NODE_MAJOR or newer, https://nodejs.org"
  local version major
  version=$(node --version)
  major=${version#v} major=${major%%.*}
  ((major >= NODE_MAJOR)) || fail "node is $version at $(command -v node): netagent needs Node $NODE_MAJOR or newer"
  has npm || fail "npm is not installed beside node $version: install it, then run again"
}

install_packages() {
  export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
  # Two runs at once would each take away the other's guard: hold a lock on this file, which needs no cleaning up.
  exec 9<"${BASH_SOURCE[0]}"
  flock 9
  log=$(mktemp)
  trap 'unguard; rm -f "$log"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  guard
  apt-get -qq update >"$log" 2>&1 || echo "bootstrap: apt-get update failed, trying with the lists at hand"
  if ! apt-get -qq install --yes --no-install-recommends "$@" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "apt-get install $* failed (its last lines are above)"
  fi
  # The packages enable their services for the next boot; nothing here wants that.
  if [[ -d /run/systemd/system ]]; then
    local unit
    for package in "$@"; do
      for unit in $(dpkg -L "$package" | sed -n 's,^.*/systemd/system/\([^/]*\.\(service\|socket\)\)$,\1,p'); do
        [[ $package == docker.io || $package == serf || $package == iperf3 || $package == haproxy ||
          $package == redis-server || $package == openvswitch-switch || $package == tinc || $package == nebula ]] &&
          systemctl disable "$unit" >/dev/null 2>&1 || true
      done
    done
  fi
}

# Debian asks /usr/sbin/policy-rc.d before it starts a service: 101 is "forbidden". What was there comes back.
POLICY=/usr/sbin/policy-rc.d
GUARD="# netagent bootstrap: no service starts while packages are installed"
guard() {
  # A copy set aside by a run that was killed is the original.
  if [[ -e $POLICY ]] && ! grep -qF "$GUARD" "$POLICY"; then mv "$POLICY" "$POLICY.netagent"; fi
  printf '#!/bin/sh\n%s\nexit 101\n' "$GUARD" >"$POLICY"
  chmod 755 "$POLICY"
}
unguard() {
  if grep -qsF "$GUARD" "$POLICY"; then rm -f "$POLICY"; fi
  if [[ -e $POLICY.netagent ]]; then mv "$POLICY.netagent" "$POLICY"; fi
}

column_of() { awk -F'|' '{ printf "%-18s %s\n", $1, $2 }'; }
# sbin is not in everybody's PATH.
has() { command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 || -x /sbin/$1 ]]; }
fail() {
  echo "bootstrap: $*" >&2
  exit 1
}

main "$@"
