"""A recipient of ws made with Python's `websockets`: shows each message as its size and its SHA-256."""

import asyncio
import hashlib

from websockets.asyncio.server import serve


async def take(connection):
    async for message in connection:
        kind = "binary" if isinstance(message, bytes) else "text"
        key = connection.request.headers.get("x-api-key")
        print(kind, len(message), hashlib.sha256(message).hexdigest(), key, flush=True)


async def main():
    async with serve(take, "127.0.0.1", 0, max_size=None) as server:
        print("port", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
