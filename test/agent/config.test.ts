import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { loadConfig, parseGossipKey } from "../../src/agent/config.ts";
import { formatKeyring, loadKeyring } from "../../src/agent/keys.ts";
import { NetError } from "../../src/base/error.ts";
import { formatCidr } from "../../src/base/ip.ts";

const KEY = "000102030405060708090a0b0c0d0e0f";

test("defaults are Docker's, and the data path is the advertised address", () => {
  const config = loadConfig(["--advertise-addr", "192.0.2.1"], "0");
  assert.equal(config.gossipPort, 7946);
  assert.equal(config.dataPathPort, 4789);
  assert.deepEqual(config.dataPathAddrs, ["192.0.2.1"]);
  assert.deepEqual(config.advertise, { ip: "192.0.2.1", port: 7946 });
});

test("who may be a member, and of which cluster, is taken as given", () => {
  const words = ["--advertise-addr", "192.0.2.1", "--gossip-label", "blue", "--gossip-verify", "outgoing"];
  const config = loadConfig(
    [...words, "--allowed-network", "192.0.2.0/24", "--allowed-network", "2001:db8::/32"],
    "0",
  );
  assert.equal(config.gossipLabel, "blue");
  assert.equal(config.gossipVerify, "outgoing");
  assert.deepEqual(config.allowedNetworks.map(formatCidr), ["192.0.2.0/24", "2001:db8::/32"]);
  const plain = loadConfig(["--advertise-addr", "192.0.2.1"], "0");
  assert.deepEqual([plain.gossipLabel, plain.gossipVerify, plain.allowedNetworks], ["", "both", []]);
});

test("a flag wins over the file", () => {
  withFile('name = "a"\nadvertise-addr = "192.0.2.1"\njoin = ["192.0.2.2", "host:7000"]\n', (path) => {
    const config = loadConfig(["--config", path, "--name", "b"], "0");
    assert.equal(config.name, "b");
    assert.deepEqual(config.join, ["192.0.2.2", "host:7000"]);
  });
});

test("an unknown key names the nearest known one", () => {
  withFile("gosip-port = 1\n", (path) => {
    assert.throws(
      () => loadConfig(["--config", path], "0"),
      /unknown key 'gosip-port' \(did you mean 'gossip-port'\?\)/,
    );
  });
});

test("a value that makes no sense is one line with key and value", () => {
  for (const [text, said] of [
    ["gossip-port = 70000\n", /gossip-port 70000/],
    ['profile = "fast"\n', /profile "fast"/],
    ['bind-addr = "nowhere"\n', /bind-addr 'nowhere'/],
    ['advertise-addr = "0.0.0.0"\n', /others cannot reach/],
    ['allowed-network = "10.0.0.0"\n', /allowed-network '10\.0\.0\.0'/],
    ['gossip-verify = "incoming"\n', /gossip-verify "incoming"/],
    [`gossip-label = "${"x".repeat(256)}"\n`, /at most 255 bytes/],
    ['advertise-addr = "no-such-interface"\n', /no such address or interface/],
    ["name = [\n", /Invalid TOML/],
  ] as const) {
    withFile(text, (path) => assert.throws(() => loadConfig(["--config", path], "0"), said));
  }
  assert.throws(() => loadConfig(["--advertise-addr", "192.0.2.1", "--join", "[::"], "0"), /join '\[::'/);
});

test("a key is 16, 24 or 32 bytes in hex or base64, and never in the message", () => {
  assert.equal(parseGossipKey(KEY).length, 16);
  assert.equal(parseGossipKey(Buffer.alloc(32, 7).toString("base64")).length, 32);
  for (const wrong of ["abc", "", "0".repeat(31), "not a key!"]) {
    assert.throws(
      () => parseGossipKey(wrong),
      (error) => error instanceof NetError && (wrong === "" || !error.message.includes(wrong)),
    );
  }
});

test("a file with a key that others may read is refused", () => {
  withFile(`gossip-key = "${KEY}"\n`, (path) => {
    chmodSync(path, 0o644);
    assert.throws(() => loadConfig(["--config", path], "0"), /chmod 600/);
  });
});

test("the keyring file's order wins and new keys of the command line are added", () => {
  const [a, b] = [parseGossipKey(KEY), parseGossipKey("f".repeat(32))];
  withFile(formatKeyring([b]), (path) => assert.deepEqual(loadKeyring(path, [a, b]), [b, a]));
  withFile("{", (path) => assert.throws(() => loadKeyring(path, []), /not a JSON list/));
  assert.deepEqual(loadKeyring("/nonexistent/keyring.json", [a]), [a]);
});

function withFile(text: string, use: (path: string) => void): void {
  const directory = mkdtempSync(join(tmpdir(), "netagent-test-"));
  try {
    const path = join(directory, "file");
    writeFileSync(path, text, { mode: 0o600 });
    use(path);
  } finally {
    rmSync(directory, { recursive: true });
  }
}
