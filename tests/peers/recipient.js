// A recipient of ws made with Node's `ws`: shows each message as its size and its SHA-256, and ends
// without a close frame at the message `die`.

const { createHash } = require("node:crypto");
const { WebSocketServer } = require("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
server.on("listening", () => console.log("port", server.address().port));
server.on("connection", (socket, request) => {
  socket.on("message", (message, isBinary) => {
    const hash = createHash("sha256").update(message).digest("hex");
    const kind = isBinary ? "binary" : "text";
    console.log(kind, message.length, hash, request.headers["x-api-key"]);
    if (message.equals(Buffer.from("die"))) process.exit(9);
  });
});
