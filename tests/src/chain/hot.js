// A function that is all the work there is, under one that calls it, for the test of Node's perf map.
//
// Keeps step with the test like the workloads in Rust, until it is killed or half a minute is over.
const fs = require("fs");

function checksumOrders(count) {
  let sum = 0;
  for (let i = 0; i < count; i++) sum = (sum * 31 + (i % 97)) >>> 0;
  return sum;
}

function settleAccounts(until) {
  let all = 0;
  while (Date.now() < until) all ^= checksumOrders(1e6);
  return all;
}

fs.writeSync(1, `READY ${process.pid}\n`);
fs.readSync(0, Buffer.alloc(1));
fs.writeSync(1, `DONE {"sum": ${settleAccounts(Date.now() + 30000)}}\n`);
