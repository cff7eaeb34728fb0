"""A Falcon service for ASGI, in OpenTelemetry's own middleware: Falcon's instrumentation is for WSGI only."""

import falcon
import falcon.asgi
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware


class Thing:
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, thing_id: str) -> None:
        resp.media = {"id": thing_id}


falcon_app = falcon.asgi.App()
falcon_app.add_route("/things/{thing_id}", Thing())
app = OpenTelemetryMiddleware(falcon_app)
