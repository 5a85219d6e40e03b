/**
 * The status page: one document without anything from elsewhere. Style and script are exported, too, since the
 * content security policy names them by their hash. All text reaches the page as text nodes, never as markup.
 */

export const STYLE = `
:root { color-scheme: light dark; --ink: #1d2733; --dim: #67727e; --paper: #f6f7f9; --card: #fff; --line: #dde2e8;
  --good: #1a8f5a; --bad: #d23b3b; --warn: #c98500; --idle: #a8b1bb; --accent: #2f6fde; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --dim: #93a0ad; --paper: #12171d; --card: #1b222b;
  --line: #2c3641; --good: #3fc487; --bad: #f06a6a; --warn: #e8b04a; --idle: #5b6672; --accent: #7aa7ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: .4em 1.4em; align-items: baseline; padding: 1em 1.4em .2em; }
h1 { font-size: 1.25em; margin: 0; }
h2 { font-size: .82em; letter-spacing: .06em; text-transform: uppercase; color: var(--dim); margin: 0 0 .6em; }
#live { margin-left: auto; color: var(--dim); }
#live::before { content: ""; display: inline-block; width: .6em; height: .6em; border-radius: 50%;
  background: var(--idle); margin-right: .5em; }
#live.on::before { background: var(--good); } #live.off::before { background: var(--bad); }
main { display: grid; grid-template-columns: minmax(340px, 5fr) minmax(340px, 6fr); gap: 1em; padding: 1em 1.4em; }
@media (max-width: 860px) { main { grid-template-columns: 1fr; } }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1em; min-width: 0; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font-size: 12px; text-anchor: middle; }
svg .dim { fill: var(--dim); font-size: 10.5px; }
.link { stroke: var(--idle); stroke-width: 2; } .link.ok { stroke: var(--good); }
.link.blocked { stroke: var(--bad); stroke-width: 3; stroke-dasharray: 7 5; }
.link.unknown { stroke-dasharray: 2 5; } .link.small { stroke: var(--warn); }
.node circle { fill: var(--card); stroke: var(--good); stroke-width: 3; }
.node.suspect circle { stroke: var(--warn); } .node.dead circle { stroke: var(--bad); }
.node.left circle { stroke: var(--idle); } .node.drain circle { stroke-dasharray: 4 3; }
.node.self circle { fill: color-mix(in srgb, var(--accent) 18%, var(--card)); }
table { border-collapse: collapse; width: 100%; font-size: .93em; }
th { text-align: left; color: var(--dim); font-weight: 500; }
th, td { padding: .25em .8em .25em 0; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
code { font: .92em ui-monospace, monospace; }
.chip { display: inline-block; border: 1px solid var(--line); border-radius: 99px; padding: 0 .6em; margin: 0 .3em .2em 0; }
.chip::before { content: ""; display: inline-block; width: .5em; height: .5em; border-radius: 50%; margin-right: .4em;
  background: var(--good); }
.chip.draining::before { background: var(--warn); }
.empty, .detail { color: var(--dim); } .wrong { color: var(--bad); }
.stack { display: grid; gap: 1em; align-content: start; min-width: 0; }
.scroll { overflow-x: auto; }
`;

export const SCRIPT = `
"use strict";
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function pairsOf(status) {
  const pairs = new Map();
  for (const link of status.links) {
    const [a, b] = [link.from, link.to].sort();
    const key = a + "\\u0000" + b;
    if (!pairs.has(key)) pairs.set(key, { a, b, links: [] });
    pairs.get(key).links.push(link);
  }
  return [...pairs.values()];
}
function colourOf(links) {
  if (links.some((link) => link.dataPath === "blocked")) return "blocked";
  if (links.some((link) => link.dataPath === "ok" && link.detail)) return "small";
  if (links.some((link) => link.dataPath === "ok")) return "ok";
  return "unknown";
}
function describe(link) {
  const facts = [link.from + " \\u2192 " + link.to + ": " + link.dataPath];
  if (link.detail) facts.push(link.detail);
  if (link.rttMs !== null) facts.push("rtt " + link.rttMs.toFixed(1) + " ms");
  if (link.mtu !== null) facts.push("mtu " + link.mtu);
  return facts.join(", ");
}

function picture(status) {
  const count = status.nodes.length;
  const radius = count < 2 ? 0 : Math.max(110, count * 13);
  const half = radius + 75;
  const places = new Map();
  status.nodes.forEach((node, index) => {
    const angle = (2 * Math.PI * index) / Math.max(count, 1) - Math.PI / 2;
    const [x, y] = [half + radius * Math.cos(angle), half + radius * Math.sin(angle)];
    // The name goes to the outside, where no line is.
    places.set(node.name, [x, y, Math.sin(angle) < -0.3 && count > 1 ? y - 50 : y + 43]);
  });
  const svg = draw("svg", { viewBox: [0, 0, 2 * half, 2 * half].join(" "), role: "img", "aria-label": "the swarm" });
  for (const { a, b, links } of pairsOf(status)) {
    const [from, to] = [places.get(a), places.get(b)];
    if (!from || !to) continue;
    const line = draw("line", { class: "link " + colourOf(links), x1: from[0], y1: from[1], x2: to[0], y2: to[1] });
    line.append(draw("title", {}, links.map(describe).join("\\n")));
    line.dataset.pair = a + " " + b;
    svg.append(line);
  }
  for (const node of status.nodes) {
    const [x, y, label] = places.get(node.name);
    const classes = ["node", node.state, node.availability, node.self ? "self" : ""].join(" ");
    const group = draw("g", { class: classes },
      draw("circle", { cx: x, cy: y, r: 27 }),
      draw("text", { x, y: y + 4 }, String(node.endpoints)),
      draw("text", { x, y: label }, node.name),
      draw("text", { x, y: label + 14, class: "dim" }, node.state === "alive" ? node.address : node.state),
      draw("title", {}, [node.name, node.address, node.state, node.role, node.version, node.availability].join(", ")));
    group.dataset.node = node.name;
    svg.append(group);
  }
  return svg;
}

function table(headings, rows) {
  if (rows.length === 0) return make("p", { class: "empty" }, "none");
  const head = make("tr", {}, ...headings.map((heading) => make("th", {}, heading)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, ...[cell].flat()))));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function troubles(status) {
  const lines = [];
  for (const node of status.nodes)
    if (node.state === "suspect" || node.state === "dead") lines.push(node.name + " is " + node.state);
  for (const link of status.links) if (link.dataPath === "blocked" || link.detail) lines.push(describe(link));
  for (const fault of status.faults) lines.push(fault.node + ": " + fault.text);
  for (const service of status.services) {
    if (service.conflict) lines.push(service.conflict);
    if (!service.backends.some((backend) => backend.state === "ready"))
      lines.push("service " + service.name + " has no backend in rotation");
  }
  for (const network of status.networks) if (network.conflict) lines.push(network.conflict);
  return lines;
}

function show(status) {
  document.title = "netagent on " + status.node;
  byId("title").textContent = "netagent on " + status.node;
  const alive = status.nodes.filter((node) => node.state === "alive").length;
  byId("summary").textContent = alive + " of " + status.nodes.length + " nodes alive, " + status.networks.length +
    " networks, " + status.services.length + " services, " + status.endpoints.length + " endpoints";
  byId("picture").replaceChildren(picture(status));
  const wrong = troubles(status);
  byId("troubles").replaceChildren(...(wrong.length === 0 ? [make("p", { class: "empty" }, "nothing is wrong")]
    : wrong.map((line) => make("p", { class: "wrong" }, line))));
  byId("services").replaceChildren(table(["Service", "Ports", "Virtual IPs", "Backends"], status.services.map((service) => [
    service.name,
    service.ports.map((port) => port.published + "\\u2192" + port.target + "/" + port.protocol).join(", ") || "-",
    make("code", {}, service.networks.map((one) => one.vip).filter(Boolean).join(", ") || service.endpointMode),
    service.backends.length === 0 ? make("span", { class: "wrong" }, "none") : service.backends.map((backend) =>
      make("span", { class: "chip " + backend.state, title: backend.ip + " " + backend.state },
        (backend.name || backend.endpoint.slice(0, 12)) + " @ " + backend.node)),
  ])));
  byId("networks").replaceChildren(table(["Network", "VNI", "Subnet", "MTU", "Endpoints"], status.networks.map((network) => [
    network.name, String(network.vni), make("code", {}, network.subnet), String(network.mtu), String(network.endpoints),
  ])));
  byId("endpoints").replaceChildren(table(["Endpoint", "Network", "Address", "Node", "Service"],
    status.endpoints.slice(0, 500).map((endpoint) => [
      endpoint.name || "-", endpoint.network, make("code", {}, endpoint.ip), endpoint.node, endpoint.service || "-",
    ])));
}

function live(state, text) {
  byId("live").className = state;
  byId("live").textContent = text;
}
const source = new EventSource("events");
source.onmessage = (event) => { show(JSON.parse(event.data)); live("on", "live"); };
source.onerror = () => live("off", "the agent does not answer; trying again");
`;

export const PAGE = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>netagent</title>
<link rel="icon" href="data:,">
<style>${STYLE}</style>
</head>
<body>
<header><h1 id="title">netagent</h1><span id="summary" class="detail"></span><span id="live">connecting</span></header>
<main>
<section><h2>Swarm</h2><div id="picture"></div></section>
<div class="stack">
<section><h2>What is wrong</h2><div id="troubles"></div></section>
<section><h2>Services</h2><div id="services"></div></section>
<section><h2>Networks</h2><div id="networks"></div></section>
<section><h2>Endpoints</h2><div id="endpoints"></div></section>
</div>
</main>
<script>${SCRIPT}</script>
</body>
</html>
`;
