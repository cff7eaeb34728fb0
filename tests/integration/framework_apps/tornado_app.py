"""A Tornado service that knows nothing of auditing."""

import asyncio
import sys

import tornado.web
import tornado.websocket


class Thing(tornado.web.RequestHandler):
    def get(self, thing_id: str) -> None:
        self.write({"id": thing_id})

    head = get


class Things(tornado.web.RequestHandler):
    def post(self) -> None:
        self.set_status(201)


class Refused(tornado.web.RequestHandler):
    def get(self) -> None:
        raise tornado.web.HTTPError(403)


class Broken(tornado.web.RequestHandler):
    def get(self) -> None:
        raise RuntimeError("out of order")


class Stream(tornado.web.RequestHandler):
    async def get(self) -> None:
        for _ in range(3):
            self.write(b"chunk")
            await self.flush()
            await asyncio.sleep(0.1)


class Room(tornado.websocket.WebSocketHandler):
    def open(self, room: str) -> None:
        if room == "broken":
            raise RuntimeError("out of order")
        if room == "strict":
            self.close(4403)

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


async def main(port: int) -> None:
    app = tornado.web.Application(
        [
            (r"/things/(?P<thing_id>[0-9]+)", Thing),
            (r"/things", Things),
            (r"/refused", Refused),
            (r"/broken", Broken),
            (r"/stream", Stream),
            (r"/rooms/(?P<room>[a-z]+)", Room),
        ]
    )
    app.listen(port, "127.0.0.1", xheaders=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
