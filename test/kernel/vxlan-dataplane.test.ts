import assert from "node:assert/strict";
import { test } from "node:test";
import type { LinkKind } from "../../src/overlay/desired.ts";
import { formatStep } from "../../src/overlay/plan.ts";
import { KernelLab, pings, rowOf, testEndpoint, testNetwork } from "./lab.ts";

for (const kind of ["macvlan", "veth"] satisfies LinkKind[]) {
  test(`${kind}: endpoints on two hosts, on one host, gateway and host leg reach each other`, () => {
    using lab = new KernelLab();
    const [a, b] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
    const web = lab.namespace("web");
    const api = lab.namespace("api");
    const db = lab.namespace("db");
    const network = testNetwork();
    const onA = [
      testEndpoint(network.id, "10.0.9.5", web.path),
      testEndpoint(network.id, "10.0.9.6", api.path),
      testEndpoint(network.id, "10.0.9.2", "host", "na-ingress"),
    ];
    const onB = [testEndpoint(network.id, "10.0.9.7", db.path, "eth3")];
    const desiredA = a.desired(
      network,
      onA,
      onB.map((endpoint) => rowOf(endpoint, "192.0.2.7")),
      kind,
    );
    const desiredB = b.desired(
      network,
      onB,
      onA.map((endpoint) => rowOf(endpoint, "192.0.2.1")),
      kind,
    );
    for (const [host, desired] of [
      [a, desiredA],
      [b, desiredB],
    ] as const) {
      const { applied } = host.reconcile(desired);
      assert.deepEqual(failures(applied), []);
      const again = host.plan(desired);
      assert.deepEqual(
        again.steps.map((step) => formatStep(network.id, step)),
        [],
      );
    }
    assert.ok(pings(web.name, "10.0.9.7"), "web → db across hosts");
    assert.ok(pings(db.name, "10.0.9.5"), "db → web across hosts");
    assert.ok(pings(web.name, "10.0.9.6"), "web → api on one host");
    assert.ok(pings(web.name, "10.0.9.1"), "web → gateway");
    assert.ok(pings(db.name, "10.0.9.1"), "db → its gateway");
    assert.ok(pings(a.namespace, "10.0.9.5"), "host leg → local endpoint");
    assert.ok(pings(a.namespace, "10.0.9.7"), "host leg → remote endpoint");
    assert.ok(pings(db.name, "10.0.9.2"), "db → host leg of the other host");
  });
}

function failures(
  applied: readonly { readonly result: { readonly status: string; readonly error?: Error } }[],
): string[] {
  return applied.flatMap(({ result }) =>
    result.status === "done" ? [] : (result.error?.message ?? result.status),
  );
}
