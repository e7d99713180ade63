// Answers every request with its path; `--version` says what it is and ends.
const http = require("http");

if (process.argv.includes("--version")) {
  console.log("node service");
} else {
  http.createServer((request, response) => response.end(`you asked for ${request.url}\n`)).listen(8080);
}
