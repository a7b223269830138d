// Runs programs on given inputs: node engine.cjs ENGINE.js IN.json OUT.json
const { readFileSync, writeFileSync } = require("fs");
const [engine, given, results] = process.argv.slice(2);
const Engine = new Function(`${readFileSync(engine, "utf8")}; return Engine;`)();
const { programs, cases } = JSON.parse(readFileSync(given));
const weights = Engine.weightsOf(programs.weights);
const found = Object.entries(cases).map(([name, inputs]) => {
  const run = Engine.program(programs[name], weights);
  return [name, inputs.map((arrays) => run(...arrays).map((array) => [...array].map(String)))];
});
writeFileSync(results, JSON.stringify(Object.fromEntries(found)));
