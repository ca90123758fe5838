// node run_page.js PAGE PIXELS: what the network in a page makes of uint8 images, and of an image
// or drawing of another size, as JSON.
const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf8");
const part = (id) => html.match(new RegExp(`<script[^>]* id="${id}">([^]*?)</script>`))[1];
const load = (code) => new Function("module", `${code}; return module.exports`)({});
const graph = JSON.parse(part("graph"));
const bytes = Buffer.from(part("weights"), "base64");
const network = load(part("code")).makeNetwork(graph, bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
const pixels = fs.readFileSync(process.argv[3]), size = graph.input.reduce((a, b) => a * b, 1), answers = [];
for (let i = 0; i < pixels.length; i += size) {
  const {output, maps} = network(pixels.subarray(i, i + size));
  answers.push({output: Array.from(output), maps: i || !maps ? null : Array.from(maps)});
}
console.log(JSON.stringify(answers));
