/**
 * node webui.js NAME [PORT]
 *
 * The miner's web page. `GET /json` answers `{ coins, hashes, now, from }`, read from `redis`; `GET /` the page with a
 * live chart of hashes per second. Nothing is loaded from anywhere else.
 */

import { createServer } from "node:http";
import { RedisClient } from "./redis-client.ts";

const [name = "webui", port = "80"] = process.argv.slice(2);
const redis = new RedisClient("redis");

createServer((request, response) => {
  if (request.url === "/") {
    response.setHeader("content-type", "text/html; charset=utf-8");
    response.end(PAGE);
  } else if (request.url === "/json") {
    Promise.all([redis.command("HLEN", "wallet"), redis.command("GET", "hashes")]).then(
      ([coins, hashes]) => {
        response.setHeader("content-type", "application/json");
        response.setHeader("cache-control", "no-store");
        response.end(
          JSON.stringify({
            coins: Number(coins),
            hashes: Number(hashes),
            now: Date.now() / 1000,
            from: name,
          }),
        );
      },
      (error: unknown) => {
        response.statusCode = 503;
        response.end(String(error));
      },
    );
  } else {
    response.statusCode = 404;
    response.end("no such page\n");
  }
}).listen(Number(port), "0.0.0.0", () => console.log(`${name} listening on ${port}`));

const PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Dockercoins miner</title>
<style>
  :root { color-scheme: light dark; --ink: light-dark(#1c2733, #e4e9ee); --soft: light-dark(#5d6b79, #98a5b1);
          --line: light-dark(#1768ac, #5fb3f3); --grid: light-dark(#dfe5ea, #2c3742); --page: light-dark(#fff, #141b22); }
  body { margin: 2.5rem auto; max-width: 46rem; padding: 0 1.5rem; font: 16px/1.5 system-ui, sans-serif;
         color: var(--ink); background: var(--page); }
  h1 { margin: 0; font-size: 1.5rem; }
  p { margin: .2rem 0 1.2rem; color: var(--soft); }
  dl { display: flex; gap: 3rem; margin: 0 0 1rem; }
  dt { color: var(--soft); font-size: .85rem; }
  dd { margin: 0; font-size: 1.9rem; font-variant-numeric: tabular-nums; }
  svg { width: 100%; height: auto; display: block; }
  .grid { stroke: var(--grid); }
  text { fill: var(--soft); font-size: 12px; }
  #area { fill: var(--line); opacity: .14; }
  #speed-line { fill: none; stroke: var(--line); stroke-width: 2; stroke-linejoin: round; }
  #trouble { color: #c0392b; min-height: 1.5em; }
</style>
<h1>Dockercoins miner</h1>
<p>Random numbers from <b>rng</b>, hashed by <b>hasher</b>, counted in <b>redis</b>; a hash that begins with 0 is a coin.</p>
<dl>
  <div><dt>hashes per second</dt><dd id="speed">–</dd></div>
  <div><dt>hashes</dt><dd id="hashes">–</dd></div>
  <div><dt>coins</dt><dd id="coins">–</dd></div>
</dl>
<svg id="chart" viewBox="0 0 720 260" role="img" aria-label="Hashes per second over the last two minutes">
  <g id="axes"></g>
  <path id="area"></path>
  <polyline id="speed-line"></polyline>
</svg>
<p id="trouble" role="status"></p>
<script>
const SPAN = 120, LEFT = 40, RIGHT = 710, TOP = 14, BOTTOM = 230;
const samples = [];   // { now, hashes }, oldest first
const points = [];    // { now, speed }
const byId = (id) => document.getElementById(id);

async function look() {
  try {
    const answer = await fetch("/json", { signal: AbortSignal.timeout(2500) });
    if (!answer.ok) throw new Error(await answer.text());
    const sample = await answer.json();
    // Speed over five seconds: single seconds jump. Another backend's clock may be a little behind.
    if (samples.length === 0 || sample.now > samples.at(-1).now) samples.push(sample);
    while (samples.length > 6) samples.shift();
    const past = samples[0], span = sample.now - past.now;
    if (span > 0.5) {
      points.push({ now: sample.now, speed: Math.max(0, (sample.hashes - past.hashes) / span) });
      while (points[0].now < sample.now - SPAN) points.shift();
      byId("speed").textContent = points.at(-1).speed.toFixed(1);
    }
    byId("hashes").textContent = sample.hashes;
    byId("coins").textContent = sample.coins;
    byId("trouble").textContent = "";
    draw();
  } catch (error) {
    byId("trouble").textContent = "no answer just now: " + error.message;
  }
  setTimeout(look, 1000);
}

function draw() {
  if (points.length === 0) return;
  const end = points.at(-1).now;
  const top = Math.max(4, Math.ceil(Math.max(...points.map((point) => point.speed)) / 2) * 2);
  const x = (now) => RIGHT - (end - now) / SPAN * (RIGHT - LEFT);
  const y = (speed) => BOTTOM - speed / top * (BOTTOM - TOP);
  const line = points.map((point) => x(point.now).toFixed(1) + "," + y(point.speed).toFixed(1));
  byId("speed-line").setAttribute("points", line.join(" "));
  byId("area").setAttribute("d", "M" + x(points[0].now).toFixed(1) + "," + BOTTOM + " L" + line.join(" L") + " L" + RIGHT + "," + BOTTOM + " Z");
  let axes = "";
  for (let i = 0; i <= 4; i++) {
    const speed = top * i / 4, at = y(speed).toFixed(1);
    axes += '<line class="grid" x1="' + LEFT + '" x2="' + RIGHT + '" y1="' + at + '" y2="' + at + '"/>';
    axes += '<text x="' + (LEFT - 8) + '" y="' + (Number(at) + 4) + '" text-anchor="end">' + speed + "</text>";
  }
  for (let seconds = SPAN; seconds >= 0; seconds -= 30)
    axes += '<text x="' + x(end - seconds) + '" y="250" text-anchor="' + (seconds === 0 ? "end" : "middle") + '">' + (seconds === 0 ? "now" : "−" + seconds + " s") + "</text>";
  byId("axes").innerHTML = axes;
}
look();
</script>
`;
