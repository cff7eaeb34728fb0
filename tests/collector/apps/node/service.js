// A small service: contacts, for whoever has a key. It knows nothing of auditing.
const express = require("express");

const app = express();
app.use((request, response, next) => {
  if (!request.get("x-api-key") && !request.get("authorization")) return response.sendStatus(401);
  if (request.get("x-api-key") === "k-intruder") return response.sendStatus(403);
  return next();
});
app.get("/contacts", (request, response) => response.json([]));
app.post("/contacts", (request, response) => response.status(201).json({}));
app.get("/contacts/:id", (request, response) => response.json({ id: request.params.id }));
app.delete("/contacts/:id", () => {
  throw new Error("the database is away");
});
app.use((error, request, response, next) => response.sendStatus(500)); // eslint-disable-line no-unused-vars

const server = app.listen(Number(process.env.PORT), "127.0.0.1", () => console.log(`listening ${server.address().port}`));
